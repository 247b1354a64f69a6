// Which pictures are shown, in which order, and what a picture's card looks like.

const byId = (id) => document.getElementById(id);
const PAGE = 24; // cards that are added at a time
const state = { order: "row", truth: "", label: "", who: "", map: "answer", compared: album.main, cards: PAGE };
let found = []; // the pictures that pass the filters, in order

const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
/** A user's words between marks that keep their writing direction to themselves. */
const isolated = (words) => `\u2068${words}\u2069`;
const className = (place) => album.classes[place];

/** An element with attributes and children; text is only ever text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// --- which pictures

const teacherOf = (picture) => (album.teacher === null ? null : picture.answers[album.teacher]);
const comparedOf = (picture) => picture.answers[state.compared];
const isRight = (picture, answer) => answer !== null && answer.label === picture.truth;

/** both, teacher, student or neither; of a run without a teacher student or neither. */
function whoIsRight(picture) {
  const [taught, own] = [isRight(picture, teacherOf(picture)), isRight(picture, comparedOf(picture))];
  if (taught && own) return "both";
  return own ? "student" : taught ? "teacher" : "neither";
}

function passes(picture) {
  const own = comparedOf(picture);
  return (
    own !== null &&
    (state.truth === "" || picture.truth === Number(state.truth)) &&
    (state.label === "" || own.label === Number(state.label)) &&
    (state.who === "" || whoIsRight(picture) === state.who)
  );
}

const KEYS = {
  apart: (picture) => comparedOf(picture).likeness ?? 2,
  alike: (picture) => -(comparedOf(picture).likeness ?? -1),
  sure: (picture) => -comparedOf(picture).confidence,
  unsure: (picture) => comparedOf(picture).confidence,
};

function select() {
  found = album.pictures.filter(passes);
  const key = KEYS[state.order];
  if (key) found.sort((one, other) => key(one) - key(other)); // stable: equals stay in the gallery's order
}

/** The class whose map a picture shows; for "own" each model's own answer. */
function classShown(picture, answer) {
  if (state.map === "truth") return picture.truth;
  if (state.map === "own") return answer.label;
  if (state.map === "answer") return (teacherOf(picture) ?? comparedOf(picture) ?? answer).label;
  return Number(state.map);
}

// --- a picture, its maps and their difference

function pane(picture, shares, ramp, words) {
  const image = make("img", { src: picture.image, alt: shares ? "" : words, draggable: "false" });
  if (!shares) return make("div", { class: "pane" }, image);
  const canvas = make("canvas", { role: "img", "aria-label": words });
  paint(canvas, shares, ramp);
  return make("div", { class: "pane veiled" }, image, canvas);
}

const lacking = (words) => make("div", { class: "pane none" }, make("span", {}, words));

function tile(title, content, ...lines) {
  const caption = make("figcaption", {}, make("b", {}, title), ...lines.map((line) => make("span", {}, line)));
  return make("figure", { class: "tile" }, content, caption);
}

function mapTile(picture, column, shown) {
  const { name } = album.columns[column];
  const answer = picture.answers[column];
  if (answer === null) return tile(isolated(name), lacking("not asked"));
  const which = shown ?? classShown(picture, answer);
  const shares = evidence(mapOf(answer, which));
  const verdict = isRight(picture, answer) ? "✓" : "✗";
  const words = `Map of ${name} for ${className(which)}. It answers ${className(answer.label)}, ${percent(answer.confidence)} sure, ${verdict === "✓" ? "right" : "wrong"}.`;
  const content = shares ? pane(picture, shares, ramps.evidence, words) : lacking("map not kept");
  return tile(isolated(name), content, `${verdict} ${isolated(className(answer.label))}`, `${percent(answer.confidence)} sure`);
}

function differenceTile(picture, shown) {
  const [taught, own] = [teacherOf(picture), comparedOf(picture)];
  const maps = [taught, own].map((answer) => answer && evidence(mapOf(answer, shown ?? classShown(picture, answer))));
  const known = own !== null && own.likeness !== null;
  const alike = known ? `likeness ${own.likeness.toFixed(2)}` : "";
  if (!maps[0] || !maps[1]) return tile("difference", lacking("–"), alike);
  const name = album.columns[state.compared].name;
  const words = `Where ${name} sees more than its teacher, and where less.${known ? ` Likeness ${own.likeness.toFixed(2)}.` : ""}`;
  const shares = maps[1].map((value, place) => (value - maps[0][place] + 1) / 2);
  return tile("difference", pane(picture, shares, ramps.difference, words), alike);
}

/** The picture, the teacher, the run that is compared with it, their difference, and then the other runs. */
function tiles(picture, shown) {
  const pair = album.teacher === null || album.teacher === state.compared ? [] : [album.teacher];
  const first = [...pair, state.compared];
  const others = album.columns.map((_, column) => column).filter((column) => !first.includes(column));
  const truth = className(picture.truth);
  return [
    tile("picture", pane(picture, null, null, `A picture of ${truth}`), isolated(truth)),
    ...first.map((column) => mapTile(picture, column, shown)),
    ...(pair.length ? [differenceTile(picture, shown)] : []),
    ...others.map((column) => mapTile(picture, column, shown)),
  ];
}

function card(picture, place) {
  const words = `${className(picture.truth)}, picture ${place + 1} of ${found.length}: open all maps`;
  const row = tiles(picture);
  const open = make("button", { type: "button", class: "open", "aria-label": words, tabindex: place ? -1 : 0 });
  const image = row[0].querySelector(".pane");
  image.replaceWith(open);
  open.append(image);
  const item = make("li", { class: "shot" }, make("div", { class: "tiles" }, ...row));
  item.style.setProperty("--tiles", Math.min(row.length, 5));
  item.addEventListener("click", () => openDetail(place));
  return item;
}

// --- the list

function show() {
  const wanted = found.slice(0, state.cards);
  byId("shots").replaceChildren(...wanted.map(card));
  byId("more").hidden = wanted.length === found.length;
  byId("more").textContent = `Show ${Math.min(PAGE, found.length - wanted.length)} more`;
  const all = album.pictures.filter((picture) => comparedOf(picture) !== null).length;
  const counted = found.length === 1 ? "1 picture" : `${found.length} pictures`;
  const shown = wanted.length < found.length ? `, ${wanted.length} of them shown` : "";
  byId("count").textContent = found.length
    ? `${counted} of ${all} in the gallery${shown}.`
    : `None of the ${all} pictures in the gallery is like that.`;
}

function refresh(changes = {}) {
  Object.assign(state, { cards: PAGE }, changes);
  for (const name of ["order", "truth", "label", "who", "map", "compared"]) byId(name).value = state[name];
  const only = byId("who").querySelector("[value=student]");
  if (only && album.teacher !== null) only.textContent = `only ${isolated(album.columns[state.compared].name)}`;
  select();
  show();
}

/** The pictures behind a cell of the confusion matrix; focus goes to the first of them. */
function openCell(truth, label, count) {
  refresh({ truth, label, who: "", compared: album.main });
  const what = truth === label ? "rightly taken for" : "taken for";
  const cell = `${isolated(className(truth))} ${what} ${isolated(className(label))}`;
  byId("count").textContent = `${cell}: ${found.length} of ${count} pictures are in the gallery.`;
  byId("gallery").scrollIntoView();
  (byId("shots").querySelector("button") ?? byId("count")).focus({ preventScroll: true });
}

/** Arrow keys, Home and End move the focus among buttons of which one alone is in the order of Tab. */
function moveFocus(event, buttons, steps) {
  const here = buttons.indexOf(document.activeElement);
  const goals = { ...steps, Home: -Infinity, End: Infinity };
  if (here < 0 || !(event.key in goals)) return;
  event.preventDefault();
  const goal = buttons[Math.min(Math.max(here + goals[event.key], 0), buttons.length - 1)];
  buttons[here].tabIndex = -1;
  goal.tabIndex = 0;
  goal.focus();
}

function option(value, words) {
  return make("option", { value }, words);
}

function offer() {
  const classes = album.classes.map((name, place) => option(place, isolated(name)));
  byId("truth").append(option("", "any"), ...classes);
  byId("label").append(option("", "any"), ...classes.map((each) => each.cloneNode(true)));
  const taught = album.teacher !== null && album.teacher !== album.main;
  byId("map").append(option("answer", taught ? "the teacher's answer" : "the answer"), option("truth", "the true class"));
  byId("map").append(option("own", "each one's own answer"), ...classes.map((each) => each.cloneNode(true)));
  const others = album.columns.map(({ name }, place) => [place, name]).filter(([place]) => place !== album.teacher);
  byId("compared").append(...(others.length ? others : [[album.main, album.columns[album.main].name]]).map(([place, name]) => option(place, isolated(name))));
  byId("compared").parentElement.hidden = others.length < 2;
  const who = taught
    ? [["both", "both"], ["teacher", "only the teacher"], ["student", ""], ["neither", "neither"]]
    : [[album.teacher === null ? "student" : "both", "right"], ["neither", "wrong"]];
  byId("who").append(option("", "all"), ...who.map((pair) => option(...pair)));
  for (const order of taught ? [] : ["apart", "alike"]) byId("order").querySelector(`[value=${order}]`).remove();
  return taught ? { order: "apart" } : {};
}

function veil() {
  byId("pictures").style.setProperty("--veil", byId("veil").value / 100);
  byId("veil-share").textContent = percent(byId("veil").value / 100);
}

function hang() {
  const preferred = offer();
  for (const name of ["order", "truth", "label", "who", "map"]) {
    byId(name).addEventListener("change", (event) => refresh({ [name]: event.target.value }));
  }
  byId("compared").addEventListener("change", (event) => refresh({ compared: Number(event.target.value) }));
  byId("veil").addEventListener("input", veil);
  byId("reset").addEventListener("click", () => refresh({ truth: "", label: "", who: "", map: "answer", ...preferred }));
  byId("more").addEventListener("click", () => {
    const before = state.cards;
    state.cards += PAGE;
    show();
    byId("shots").querySelectorAll("button")[before].focus();
  });
  byId("shots").addEventListener("keydown", (event) => {
    const across = getComputedStyle(byId("shots")).gridTemplateColumns.split(" ").length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across };
    moveFocus(event, [...byId("shots").querySelectorAll("button")], steps);
  });
  byId("pictures").hidden = false;
  veil();
  refresh(preferred);
}
