// The search: cuts the question into terms as search.py cut the texts, loads the shards of these terms, and checks and
// shows the hits with the texts of their reports. Scripts are loaded, not fetched: a page on disk may not fetch.
"use strict";

const N_SHARDS = 64;
const PAGE = 20;
const UNSPACED = "\\u3005-\\u3007\\u3040-\\u30ff\\u3400-\\u4dbf\\u4e00-\\u9fff\\uac00-\\ud7af\\uf900-\\ufaff\\u{20000}-\\u{3134f}";
const RUNS = new RegExp(`[${UNSPACED}]+|(?:(?![${UNSPACED}])[\\p{L}\\p{N}_])+`, "gu");
const STARTS_UNSPACED = new RegExp(`^[${UNSPACED}]`, "u");

const loaded = new Map();
const postings = new Map();
const texts = new Map();
let documents = [];
let shards = new Set();
let asked = 0;

const tunekeeperSearch = {
  documents(rows, numbers) { documents = rows; shards = new Set(numbers); start(); },
  terms(number, pairs) { postings.set(number, new Map(pairs)); },
  texts(byDocument) { for (const [id, text] of Object.entries(byDocument)) texts.set(Number(id), text); },
};

const byId = (id) => document.getElementById(id);
const normal = (text) => text.normalize("NFKC");
const folded = (text) => normal(text).toLowerCase();

function load(path) {
  if (!loaded.has(path)) {
    loaded.set(path, new Promise((done) => {
      const script = document.createElement("script");
      script.src = path;
      script.onload = script.onerror = () => { script.remove(); done(); };
      document.head.append(script);
    }));
  }
  return loaded.get(path);
}

// Terms of one word of the question: [term, whether longer terms that begin with it count too].
function termsOf(word) {
  const found = [];
  for (const [run] of folded(word).matchAll(RUNS)) {
    const characters = [...run];
    if (!STARTS_UNSPACED.test(run)) found.push([run, true]);
    else if (characters.length === 1) found.push([run, true]);
    else for (let at = 0; at + 1 < characters.length; at++) found.push([characters[at] + characters[at + 1], false]);
  }
  return found;
}

async function documentsWith(term, isPrefix) {
  const number = term.codePointAt(0) % N_SHARDS;
  if (!shards.has(number)) return new Set();
  await load(`search/terms/${number}.js`);
  const shard = postings.get(number) ?? new Map();
  if (!isPrefix) return new Set(shard.get(term));
  const found = new Set();
  for (const [known, ids] of shard) if (known.startsWith(term)) for (const id of ids) found.add(id);
  return found;
}

const wordsOf = (question) => [...question.matchAll(/"([^"]+)"|[^\s"]+/gu)].map((match) => match[1] ?? match[0]);

async function candidates(words) {
  let common = null;
  for (const [term, isPrefix] of words.flatMap(termsOf)) {
    const found = await documentsWith(term, isPrefix);
    common = common === null ? found : new Set([...common].filter((id) => found.has(id)));
    if (!common.size) break;
  }
  return [...(common ?? [])];
}

const textsPath = (id) => `search/texts/${encodeURIComponent(documents[id][0])}.js`;

// The documents that have all words, best first: most words in the title, then the newest, then as in the report.
async function ranked(words, category) {
  const ids = (await candidates(words)).filter((id) => !category || documents[id][4] === category);
  const inTitle = new Map(ids.map((id) => [id, words.filter((word) => folded(documents[id][2]).includes(word)).length]));
  const byDate = (a, b) => (documents[a][3] === documents[b][3] ? a - b : documents[a][3] < documents[b][3] ? 1 : -1);
  return ids.sort((a, b) => inTitle.get(b) - inTitle.get(a) || byDate(a, b));
}

// The terms of a word may stand apart in a text: only the text tells whether the word is there.
async function hasAll(id, words) {
  await load(textsPath(id));
  const text = (texts.get(id) ?? "").toLowerCase();
  return words.every((word) => text.includes(word));
}

function marked(text, words) {
  const lower = text.toLowerCase();
  const spans = [];
  for (const word of words) {
    for (let at = lower.indexOf(word); at >= 0; at = lower.indexOf(word, at + word.length)) spans.push([at, at + word.length]);
  }
  spans.sort((a, b) => a[0] - b[0]);
  const out = document.createDocumentFragment();
  let end = 0;
  for (const [from, to] of spans) {
    if (from < end) continue;
    out.append(text.slice(end, from));
    const mark = document.createElement("mark");
    mark.textContent = text.slice(from, to);
    out.append(mark);
    end = to;
  }
  out.append(text.slice(end));
  return out;
}

function snippet(text, words) {
  const body = text.slice(text.indexOf("\n") + 1);
  const lower = body.toLowerCase();
  const at = Math.min(...words.map((word) => lower.indexOf(word)).filter((place) => place >= 0), body.length);
  const from = at < body.length ? Math.max(0, at - 60) : 0;
  return (from ? "…" : "") + body.slice(from, from + 220).trim() + (from + 220 < body.length ? "…" : "");
}

function element(name, className, content) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (content !== undefined) made.append(content);
  return made;
}

function show(id, words) {
  const [, address, title, date, category, kind] = documents[id];
  const text = texts.get(id) ?? "";
  const language = /[\u3040-\u30ff]/u.test(text) ? "ja" : "";
  const [path, anchor] = address.split("#");
  const link = element("a", "", marked(normal(title), words));
  link.href = path.split("/").map(encodeURIComponent).join("/") + (anchor ? `#${anchor}` : "");
  const hit = element("li");
  const heading = element("h2", "", link);
  const context = element("p", "summary", marked(snippet(text, words), words));
  if (language) heading.lang = context.lang = language;
  hit.append(heading, element("p", "soft", [date, category, kind].filter(Boolean).join(" · ")), context);
  return hit;
}

async function answer() {
  const mine = ++asked;
  const question = byId("search-question").value.trim();
  const category = byId("search-category").value;
  const address = new URL(location.href);
  for (const [name, value] of [["q", question], ["category", category]]) {
    if (value) address.searchParams.set(name, value);
    else address.searchParams.delete(name);
  }
  try { history.replaceState(null, "", address); } catch { /* a page on disk may not change its address */ }
  const words = wordsOf(question).map(folded);
  const ids = await ranked(words, category);
  if (mine !== asked) return;
  byId("search-hits").replaceChildren();
  let looked = 0;
  let shown = 0;
  const more = async () => {
    const hits = [];
    while (looked < ids.length && hits.length < PAGE) {
      const next = ids.slice(looked, looked + PAGE);
      looked += next.length;
      const isHit = await Promise.all(next.map((id) => hasAll(id, words)));
      hits.push(...next.filter((_, at) => isHit[at]));
    }
    if (mine !== asked) return;
    shown += hits.length;
    byId("search-hits").append(...hits.map((id) => show(id, words)));
    byId("search-more").hidden = looked >= ids.length;
    const count = byId("search-count");
    const isAll = looked >= ids.length;
    if (!question) count.textContent = "";
    else if (isAll && shown < 2) count.textContent = shown ? count.dataset.one : count.dataset.none;
    else count.textContent = count.dataset.many.replace("{n}", isAll ? shown : `${shown}+`);
  };
  byId("search-more").onclick = more;
  await more();
  document.body.dataset.answered = question;
}

function start() {
  const given = new URLSearchParams(location.search);
  byId("search-question").value = given.get("q") ?? "";
  byId("search-category").value = given.get("category") ?? "";
  let waiting;
  byId("search-question").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(answer, 150); });
  byId("search-category").addEventListener("change", answer);
  byId("search-form").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
  answer();
}
