// The gallery: filter and sort images, and show each image as a card with the maps of all models.

const byId = (id) => document.getElementById(id);
const PAGE_SIZE = 24; // cards per page
const CONTROLS = ["order", "label", "predicted", "correct", "map", "contrast", "compared"]; // keys of `state` and ids of the controls
const state = { order: "selection", label: "", predicted: "", correct: "", map: "prediction", contrast: "", compared: gallery.main, cards: PAGE_SIZE };
let filtered = []; // the images that pass the filters, sorted

const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
/** Isolate user text, so that its writing direction does not affect the text around it. */
const isolate = (text) => `\u2068${text}\u2069`;
const className = (classId) => gallery.classes[classId];

/** Create an element with attributes and children; strings become text nodes, never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// --- filters and order

const teacherPrediction = (image) => (gallery.teacher === null ? null : image.predictions[gallery.teacher]);
const comparedPrediction = (image) => image.predictions[state.compared];
const isCorrect = (image, prediction) => prediction !== null && prediction.predicted === image.label;

/** Return which model is correct: "both", "teacher", "student" or "neither". A missing prediction counts as wrong. */
function correctModel(image) {
  const teacherCorrect = isCorrect(image, teacherPrediction(image));
  const studentCorrect = isCorrect(image, comparedPrediction(image));
  if (teacherCorrect && studentCorrect) return "both";
  return studentCorrect ? "student" : teacherCorrect ? "teacher" : "neither";
}

function passesFilters(image) {
  const prediction = comparedPrediction(image);
  return (
    prediction !== null &&
    (state.label === "" || image.label === Number(state.label)) &&
    (state.predicted === "" || prediction.predicted === Number(state.predicted)) &&
    (state.correct === "" || correctModel(image) === state.correct)
  );
}

const SORT_KEYS = {
  dissimilar: (image) => comparedPrediction(image).cam_cosine ?? 2,
  similar: (image) => -(comparedPrediction(image).cam_cosine ?? -1),
  confident: (image) => -comparedPrediction(image).confidence,
  uncertain: (image) => comparedPrediction(image).confidence,
};

function applyFilters() {
  filtered = gallery.images.filter(passesFilters);
  const key = SORT_KEYS[state.order];
  if (key) filtered.sort((first, second) => key(first) - key(second)); // stable: ties keep the order of selection
}

/** Return the class of the map to show, by the control "Map of class". With "own", each model shows its own prediction. */
function mapClass(image, prediction) {
  if (state.map === "label") return image.label;
  if (state.map === "own") return prediction.predicted;
  if (state.map === "prediction") return (teacherPrediction(image) ?? comparedPrediction(image) ?? prediction).predicted;
  return Number(state.map);
}

/** Return the map of a class; with a class selected in "Contrast with", the difference to the map of that class. */
function shownMap(prediction, classId) {
  return state.contrast === "" ? mapOf(prediction, classId) : contrastMap(prediction, classId, Number(state.contrast));
}

const isContrast = (classId) => state.contrast !== "" && classId === Number(state.contrast);
const mapName = (classId) => (state.contrast === "" ? className(classId) : `${className(classId)} vs. ${className(Number(state.contrast))}`);

// --- an image, its maps and their difference

function imagePane(image, description) {
  return make("div", { class: "pane" }, make("img", { src: image.thumbnail, alt: description, draggable: "false" }));
}

function mapPane(image, values, colormap, description) {
  const canvas = make("canvas", { role: "img", "aria-label": description });
  drawMap(canvas, values, colormap);
  return make("div", { class: "pane overlay" }, make("img", { src: image.thumbnail, alt: "", draggable: "false" }), canvas);
}

const emptyPane = (text) => make("div", { class: "pane empty" }, make("span", {}, text));

function tile(title, content, ...lines) {
  const caption = make("figcaption", {}, make("b", {}, title), ...lines.map((line) => make("span", {}, line)));
  return make("figure", { class: "tile" }, content, caption);
}

function mapTile(image, column, classId) {
  const { name } = gallery.columns[column];
  const prediction = image.predictions[column];
  if (prediction === null) return tile(isolate(name), emptyPane("no prediction"));
  const shownClass = classId ?? mapClass(image, prediction);
  const values = isContrast(shownClass) ? null : evidence(shownMap(prediction, shownClass));
  const correct = isCorrect(image, prediction);
  const predicted = className(prediction.predicted);
  const confidence = percent(prediction.confidence);
  const description = `Map of ${name} for ${mapName(shownClass)}. Predicts ${predicted} with ${confidence} confidence, ${correct ? "correct" : "wrong"}.`;
  const reason = isContrast(shownClass) ? `no contrast of ${isolate(className(shownClass))} with itself` : "map not stored";
  const content = values ? mapPane(image, values, "evidence", description) : emptyPane(reason);
  return tile(isolate(name), content, `${correct ? "✓" : "✗"} ${isolate(predicted)}`, confidence);
}

function differenceTile(image, classId) {
  const predictions = [teacherPrediction(image), comparedPrediction(image)];
  const [teacherMap, studentMap] = predictions.map((prediction) => {
    const shownClass = prediction && (classId ?? mapClass(image, prediction));
    return prediction && !isContrast(shownClass) ? evidence(shownMap(prediction, shownClass)) : null;
  });
  const cosine = predictions[1]?.cam_cosine ?? null;
  const similarity = cosine === null ? "" : `cosine ${cosine.toFixed(2)}`;
  if (!teacherMap || !studentMap) return tile("difference", emptyPane("–"), similarity);
  const { name } = gallery.columns[state.compared];
  const description = `Map of ${name} minus the teacher's map.${similarity && ` CAM ${similarity}.`}`;
  const values = studentMap.map((value, index) => (value - teacherMap[index] + 1) / 2);
  return tile("difference", mapPane(image, values, "difference", description), similarity);
}

/** Return the tiles of an image: the image, teacher, compared run, their difference, and the other runs. */
function tiles(image, classId) {
  const hasPair = gallery.teacher !== null && gallery.teacher !== state.compared;
  const first = hasPair ? [gallery.teacher, state.compared] : [state.compared];
  const others = gallery.columns.map((_, column) => column).filter((column) => !first.includes(column));
  const label = className(image.label);
  return [
    tile("image", imagePane(image, `Image of ${label}`), isolate(label)),
    ...first.map((column) => mapTile(image, column, classId)),
    ...(hasPair ? [differenceTile(image, classId)] : []),
    ...others.map((column) => mapTile(image, column, classId)),
  ];
}

function card(image, index) {
  const description = `${className(image.label)}, image ${index + 1} of ${filtered.length}: show all maps`;
  const imageTiles = tiles(image);
  const open = make("button", { type: "button", class: "open", "aria-label": description, tabindex: index ? -1 : 0 });
  const pane = imageTiles[0].querySelector(".pane");
  pane.replaceWith(open);
  open.append(pane);
  const item = make("li", { class: "image-card" }, make("div", { class: "tiles" }, ...imageTiles));
  item.style.setProperty("--tiles", Math.min(imageTiles.length, 5));
  item.addEventListener("click", () => openDetail(index));
  return item;
}

// --- the list of cards

function showCards() {
  const visible = filtered.slice(0, state.cards);
  byId("image-cards").replaceChildren(...visible.map(card));
  byId("more").hidden = visible.length === filtered.length;
  byId("more").textContent = `Show ${Math.min(PAGE_SIZE, filtered.length - visible.length)} more`;
  const total = gallery.images.filter((image) => comparedPrediction(image) !== null).length;
  const limit = visible.length < filtered.length ? `, the first ${visible.length} are shown` : "";
  byId("count").textContent = filtered.length
    ? `${filtered.length} of ${total} images in the gallery${limit}.`
    : `None of the ${total} images in the gallery matches the filters.`;
}

function refresh(changes = {}) {
  Object.assign(state, { cards: PAGE_SIZE }, changes);
  for (const name of CONTROLS) byId(name).value = state[name];
  const onlyStudent = byId("correct").querySelector("[value=student]");
  if (onlyStudent && gallery.teacher !== null) onlyStudent.textContent = `only ${isolate(gallery.columns[state.compared].name)}`;
  applyFilters();
  showCards();
}

/** Show the images of a cell of the confusion matrix and move the focus to the first image. */
function openCell(label, predicted, count) {
  refresh({ label, predicted, correct: "", compared: gallery.main });
  const cell = `True class ${isolate(className(label))}, predicted class ${isolate(className(predicted))}`;
  byId("count").textContent = `${cell}: ${filtered.length} of ${count} images are in the gallery.`;
  byId("gallery").scrollIntoView();
  (byId("image-cards").querySelector("button") ?? byId("count")).focus({ preventScroll: true });
}

/** Move the focus among buttons with arrow keys, Home and End; only one button is in the tab order (roving tabindex). */
function moveFocus(event, buttons, steps) {
  const current = buttons.indexOf(document.activeElement);
  const stepsByKey = { ...steps, Home: -Infinity, End: Infinity };
  if (current < 0 || !(event.key in stepsByKey)) return;
  event.preventDefault();
  const target = buttons[Math.min(Math.max(current + stepsByKey[event.key], 0), buttons.length - 1)];
  buttons[current].tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

const option = (value, text) => make("option", { value }, text);

/** Fill the select elements. Return the default sort order; without a teacher there is no CAM cosine to sort by. */
function fillControls() {
  const classOptions = () => gallery.classes.map((name, classId) => option(classId, isolate(name)));
  const hasTeacher = gallery.teacher !== null && gallery.teacher !== gallery.main;
  byId("label").append(option("", "any"), ...classOptions());
  byId("predicted").append(option("", "any"), ...classOptions());
  byId("map").append(
    option("prediction", hasTeacher ? "teacher's prediction" : "prediction"),
    option("label", "true class"),
    option("own", "each model's prediction"),
    ...classOptions(),
  );
  byId("contrast").append(option("", "off"), ...classOptions());
  byId("contrast").parentElement.hidden = gallery.classes.length < 2;
  const students = gallery.columns.map((_, column) => column).filter((column) => column !== gallery.teacher);
  const columns = students.length ? students : [gallery.main];
  byId("compared").append(...columns.map((column) => option(column, isolate(gallery.columns[column].name))));
  byId("compared").parentElement.hidden = students.length < 2;
  const outcomes = hasTeacher
    ? [["both", "both"], ["teacher", "only the teacher"], ["student", ""], ["neither", "neither"]]
    : [[gallery.teacher === null ? "student" : "both", "correct"], ["neither", "wrong"]];
  byId("correct").append(option("", "any"), ...outcomes.map(([value, text]) => option(value, text)));
  for (const order of hasTeacher ? [] : ["dissimilar", "similar"]) byId("order").querySelector(`[value=${order}]`).remove();
  return hasTeacher ? { order: "dissimilar" } : {};
}

/** Apply the opacity of the slider. It is a style, so no map is drawn again. */
function updateOpacity() {
  const opacity = byId("opacity").value / 100;
  byId("gallery-app").style.setProperty("--opacity", opacity);
  byId("opacity-value").textContent = percent(opacity);
}

function initGallery() {
  const defaults = { label: "", predicted: "", correct: "", map: "prediction", contrast: "", ...fillControls() };
  for (const name of CONTROLS) {
    byId(name).addEventListener("change", (event) => {
      const { value } = event.target;
      refresh({ [name]: name === "compared" ? Number(value) : value });
    });
  }
  byId("opacity").addEventListener("input", updateOpacity);
  byId("reset").addEventListener("click", () => refresh(defaults));
  byId("more").addEventListener("click", () => {
    const firstNew = state.cards;
    state.cards += PAGE_SIZE;
    showCards();
    byId("image-cards").querySelectorAll("button")[firstNew].focus();
  });
  byId("image-cards").addEventListener("keydown", (event) => {
    const perRow = getComputedStyle(byId("image-cards")).gridTemplateColumns.split(" ").length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: perRow, ArrowUp: -perRow };
    moveFocus(event, [...byId("image-cards").querySelectorAll("button")], steps);
  });
  byId("gallery-app").hidden = false;
  updateOpacity();
  refresh(defaults);
}
