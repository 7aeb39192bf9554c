"use strict";
// The gallery: layers, filters, order, and one sample at a time in a dialog. Without a script all layers are shown.
document.documentElement.classList.add("scripted");

const byId = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll(".card")];
const list = byId("cards");
const filters = [...document.querySelectorAll("select[data-filter]")];

const layers = [...document.querySelectorAll(".layers button")].map((button) => button.dataset.layer);

function showLayer(layer) {
  list.dataset.layer = byId("zoom-pictures").dataset.layer = layer;
  for (const button of document.querySelectorAll(".layers button")) {
    button.setAttribute("aria-pressed", String(button.dataset.layer === layer));
  }
}

function matches(card) {
  const has = (key, wanted) => wanted === "" || card.dataset[key].split(" ").includes(wanted);
  return filters.every((filter) => has(filter.dataset.filter, filter.value))
    && card.dataset.text.toLowerCase().includes(byId("search").value.trim().toLowerCase());
}

function applyFilters() {
  for (const card of cards) card.hidden = !matches(card);
  const shown = visible().length;
  byId("shown").textContent = shown === cards.length ? `all ${shown} samples` : `${shown} of ${cards.length} samples`;
}

function applyOrder() {
  const sign = byId("order").value === "best" ? -1 : 1;
  const inOrder = byId("order").value === "id"
    ? [...cards].sort((a, b) => a.dataset.text.localeCompare(b.dataset.text))
    : [...cards].sort((a, b) => sign * (a.dataset.score - b.dataset.score));
  list.append(...inOrder);
}

const visible = () => [...list.children].filter((card) => !card.hidden);

let current = null;

function openCard(card) {
  current = card;
  byId("zoom-title").textContent = card.querySelector("h3").textContent;
  byId("zoom-pictures").replaceChildren(...[...card.querySelector(".layered").children].map((each) => each.cloneNode(true)));
  if (!byId("zoom").open) byId("zoom").showModal();
}

function step(by) {
  const shown = visible();
  openCard(shown[(shown.indexOf(current) + by + shown.length) % shown.length]);
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input, select, textarea")) return;
  if (byId("zoom").open) {
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  }
  if (layers[event.key - 1]) showLayer(layers[event.key - 1]);
}

if (list) {
  for (const button of document.querySelectorAll(".layers button")) {
    button.addEventListener("click", () => showLayer(button.dataset.layer));
  }
  for (const field of [...filters, byId("search")]) field.addEventListener("input", applyFilters);
  byId("order").addEventListener("input", applyOrder);
  for (const card of cards) card.querySelector(".open").addEventListener("click", () => openCard(card));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => byId("zoom").close());
  document.addEventListener("keydown", onKey);
  showLayer(document.querySelector(".boxes") ? "all" : "image");
  applyFilters();
}

// On paper nothing can be unfolded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open]):not(.card *)")];
  for (const each of folded) each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of folded) each.open = false;
});
