"use strict";
// Slider, wipe, copy, selection for comparison, and live updates; the pages list, search and link without it.
const all = (query, parent = document) => [...parent.querySelectorAll(query)], one = (query, parent = document) => parent.querySelector(query);
const element = (name, ...inside) => { const node = document.createElement(name); node.append(...inside); return node; };

document.addEventListener("error", (event) => { if (event.target.matches?.(".strip img")) event.target.classList.add("none"); }, true);

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.(".copy");
  if (!button) return;
  const code = one("code", button.parentElement);
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

// Two runs to compare, stored per browser tab.
const bar = one("#picks");
let picks = [];
try { picks = JSON.parse(sessionStorage.getItem("picks")) ?? []; } catch { /* none selected */ }
function updatePicks() {
  sessionStorage.setItem("picks", JSON.stringify(picks));
  for (const box of all(".pick input")) box.checked = picks.some(([id]) => id === box.value);
  bar.hidden = !picks.length;
  one("span", bar).textContent = picks.map(([, name]) => name).join("  and  ") + (picks.length < 2 ? "  and one more" : "");
  const link = one("a", bar);
  if (picks.length === 2) link.href = "/compare?" + new URLSearchParams(picks.map(([id]) => ["run", id]));
  else link.removeAttribute("href");
}
document.addEventListener("change", (event) => {
  const box = event.target;
  if (!box.matches(".pick input")) return;
  picks = picks.filter(([id]) => id !== box.value);
  if (box.checked) picks = [...picks, [box.value, box.dataset.name]].slice(-2);
  updatePicks();
});
one("button", bar).addEventListener("click", () => { picks = []; updatePicks(); });
updatePicks();

// Samples by step.
const samples = one("#samples .scrub") && one("#samples");
if (samples) {
  const range = one("input", samples), output = one("output", samples), tiles = one(".tiles", samples), play = one("button", samples);
  let data = { steps: [], rows: [] }, timer = null;
  function showStep(number) {
    range.value = number;
    output.textContent = `step ${data.steps[number]}`;
    all("figure", tiles).forEach((figure, row) => {
      const file = data.rows[row].files[number], image = one("img", figure);
      figure.classList.toggle("none", !file);
      if (file && image.getAttribute("src") !== file) { image.src = file; one("a", figure).href = file; }
    });
    for (const { files } of data.rows) for (const near of [files[number - 1], files[number + 1]]) if (near) new Image().src = near;
  }
  samples.load = async () => {
    const answer = await fetch(samples.dataset.samples);
    if (!answer.ok) return;
    const atEnd = +range.value === data.steps.length - 1 || !data.steps.length, rows = data.rows.length;
    data = await answer.json();
    if (data.rows.length !== rows || !rows) {
      tiles.replaceChildren(...data.rows.map((row) => {
        const image = element("img");
        image.alt = row.prompt;
        return element("figure", Object.assign(element("a", image), { target: "_blank", rel: "noopener" }), element("figcaption", row.prompt, " ", element("span", row.seed && `seed ${row.seed}`)));
      }));
    }
    range.max = data.steps.length - 1;
    showStep(atEnd ? data.steps.length - 1 : +range.value);
  };
  range.addEventListener("input", () => showStep(+range.value));
  play.addEventListener("click", () => {
    if (timer) { clearInterval(timer); timer = null; play.textContent = "Play"; return; }
    play.textContent = "Pause";
    timer = setInterval(() => showStep((+range.value + 1) % data.steps.length), 700);
  });
  samples.load();
}

// The wipe: the slider, or a pointer on any image, moves all dividers.
const wipe = one("#wipe .scrub") && one("#wipe");
if (wipe) {
  const range = one("input", wipe), stacks = all(".stack", wipe);
  const move = (percent) => { range.value = percent; for (const stack of stacks) stack.style.setProperty("--at", `${percent}%`); };
  range.addEventListener("input", () => move(+range.value));
  for (const stack of stacks) {
    const follow = (event) => {
      const box = stack.getBoundingClientRect();
      move(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
    };
    stack.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse" || event.buttons) follow(event); });
    stack.addEventListener("pointerdown", follow);
  }
  move(50);
}
const sides = one("#sides");
if (sides) {
  one(":scope > button", sides).hidden = true;
  sides.addEventListener("change", () => sides.requestSubmit());
}

// Filter the list while typing.
const filter = one("#filter");
let typing = null;
filter?.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    history.replaceState(null, "", "/?" + new URLSearchParams([...new FormData(filter)].filter(([, value]) => value)));
    refresh();
  }, 250);
});

// Live updates: unchanged elements are not replaced, so that nothing flickers or scrolls.
let latestRequest = 0, refreshTimer = null;
async function refresh() {
  const number = ++latestRequest, start = performance.now();
  try {
    const answer = await fetch(location.href), page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (number !== latestRequest) return;
    for (const old of all("[data-live]")) {
      const fresh = one(`#${old.id}`, page);
      if (!fresh) continue;
      const ended = old.dataset.state && old.dataset.state !== fresh.dataset.state;
      if (ended && old.dataset.state === "running") { location.reload(); return; }
      old.dataset.live = fresh.dataset.live;
      updateCards(old, fresh);
    }
    updatePicks();
    await Promise.all([samples?.load(), one("#curves")?.load?.()]);
  } catch { /* the server is down */ }
  scheduleRefresh(performance.now() - start);
}
function updateCards(old, fresh) {
  const cards = new Map(all(".card", old).map((card) => [card.dataset.id, card]));
  for (const card of all(".card", fresh)) {
    const before = cards.get(card.dataset.id), same = before && one(".strip", before), strip = one(".strip", card);
    if (same && all("img", same).map((i) => i.getAttribute("src")).join() === all("img", strip).map((i) => i.getAttribute("src")).join()) strip.replaceWith(same);
  }
  if (old.innerHTML !== fresh.innerHTML) old.replaceChildren(...fresh.childNodes);
}
function scheduleRefresh(duration) {
  clearTimeout(refreshTimer);
  const every = Math.max(0, ...all("[data-live]").map((node) => +node.dataset.live));
  if (every) refreshTimer = setTimeout(() => (document.hidden ? scheduleRefresh(0) : refresh()), Math.max(every * 1000, 10 * duration));
}
scheduleRefresh(0);
