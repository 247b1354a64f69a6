// The dialog of one image: every model's map of any class, and the probabilities of every model.

const detail = { index: 0, classId: null }; // the class of all maps; null shows the same maps as the gallery

function openDetail(index) {
  Object.assign(detail, { index, classId: null });
  drawDetail();
  byId("detail").showModal();
}

function drawDetail() {
  const image = filtered[detail.index];
  byId("detail-title").textContent = `${isolate(className(image.label))}, ${detail.index + 1} of ${filtered.length}`;
  byId("detail-name").textContent = image.name === null ? "" : isolate(image.name);
  byId("detail-contrast").textContent = state.contrast === "" ? "" : `Maps: evidence for a class vs. ${isolate(className(Number(state.contrast)))}`;
  byId("detail-tiles").replaceChildren(...tiles(image, detail.classId ?? undefined));
  const columns = image.predictions.map((_, column) => column).filter((column) => image.predictions[column] !== null);
  byId("detail-head").replaceChildren(
    make("th", { scope: "col" }, "class"),
    ...columns.map((column) => make("th", { scope: "col", class: "num wrap" }, isolate(gallery.columns[column].name))),
  );
  byId("detail-classes").replaceChildren(...sortedClasses(image).map((classId) => classRow(image, classId, columns)));
  byId("previous").disabled = detail.index === 0;
  byId("next").disabled = detail.index === filtered.length - 1;
}

/** Return the classes with a stored map, most probable first. */
function sortedClasses(image) {
  const { class_ids, probabilities } = comparedPrediction(image);
  const probability = new Map(class_ids.map((classId, index) => [classId, probabilities[index]]));
  return [...class_ids].sort((first, second) => probability.get(second) - probability.get(first));
}

function classRow(image, classId, columns) {
  const commonClass = state.map === "own" ? null : mapClass(image, comparedPrediction(image)); // the class of all maps, if it is the same
  const pressed = classId === (detail.classId ?? commonClass);
  const button = make("button", { type: "button", class: "class wrap", "aria-pressed": pressed }, isolate(className(classId)));
  button.addEventListener("click", () => {
    detail.classId = detail.classId === classId ? null : classId;
    drawDetail();
    const buttons = [...byId("detail-classes").querySelectorAll("button")];
    buttons.find((candidate) => candidate.textContent === button.textContent).focus();
  });
  const cells = columns.map((column) => {
    const { class_ids, probabilities } = image.predictions[column];
    const index = class_ids.indexOf(classId);
    return make("td", { class: "num" }, index < 0 ? "–" : percent(probabilities[index]));
  });
  const head = make("th", { scope: "row" }, button, ...(classId === image.label ? [" (true)"] : []));
  return make("tr", {}, head, ...cells);
}

function step(offset) {
  const index = detail.index + offset;
  if (index < 0 || index >= filtered.length) return;
  Object.assign(detail, { index, classId: null });
  drawDetail();
  if (document.activeElement?.disabled) byId("close").focus();
}

function initDetail() {
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => byId("detail").close());
  byId("detail").addEventListener("click", (event) => event.target === byId("detail") && byId("detail").close());
  byId("detail").addEventListener("keydown", (event) => {
    const offset = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!offset) return;
    event.preventDefault();
    step(offset);
  });
  byId("detail").addEventListener("close", () => {
    if (detail.index >= state.cards) {
      state.cards = detail.index + 1;
      showCards();
    }
    const buttons = [...byId("image-cards").querySelectorAll("button")];
    buttons.forEach((button, index) => (button.tabIndex = index === detail.index ? 0 : -1));
    buttons[detail.index]?.focus();
  });
}
