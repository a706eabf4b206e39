// How many days are left, by the reader's clock; and a link into a closed fold opens it.
"use strict";

const DAY_MS = 86400000;
const words = document.body.dataset;
const now = new Date();
const today = Date.UTC(now.getFullYear(), now.getMonth(), now.getDate());

for (const element of document.querySelectorAll(".left[data-date]")) {
  const days = Math.round((Date.parse(element.dataset.date) - today) / DAY_MS);
  if (days < 0) element.textContent = words.passed;
  else if (days === 0) element.textContent = words.today;
  else element.textContent = days === 1 ? words.oneDayLeft : words.daysLeft.replace("{n}", days);
  element.classList.add(days < 0 ? "over" : days <= 30 ? "soon" : "later");
}

function reveal() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  target.scrollIntoView();
}

addEventListener("hashchange", reveal);
reveal();
