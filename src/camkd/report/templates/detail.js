// One picture in full: every model's map of any class, and what each model makes of it.

const detail = { place: 0, shown: null }; // the class all maps are of; null: what the gallery shows

function openDetail(place) {
  Object.assign(detail, { place, shown: null });
  drawDetail();
  byId("detail").showModal();
}

function drawDetail() {
  const picture = found[detail.place];
  byId("detail-title").textContent = `${isolated(className(picture.truth))}, ${detail.place + 1} of ${found.length}`;
  byId("detail-name").textContent = picture.name === null ? "" : isolated(picture.name);
  byId("detail-tiles").replaceChildren(...tiles(picture, detail.shown ?? undefined));
  const asked = picture.answers.map((_, column) => column).filter((column) => picture.answers[column] !== null);
  byId("detail-head").replaceChildren(
    make("th", { scope: "col" }, "map of"),
    ...asked.map((column) => make("th", { scope: "col", class: "num wrap" }, isolated(album.columns[column].name))),
  );
  byId("detail-classes").replaceChildren(...classesOf(picture).map((shown) => classRow(picture, shown, asked)));
  byId("previous").disabled = detail.place === 0;
  byId("next").disabled = detail.place === found.length - 1;
}

/** The classes with a map, the likeliest first. */
function classesOf(picture) {
  const answer = comparedOf(picture);
  const share = new Map(answer.shown.map((shown, place) => [shown, answer.shares[place]]));
  return [...answer.shown].sort((one, other) => share.get(other) - share.get(one));
}

function classRow(picture, shown, asked) {
  const all = state.map === "own" ? null : classShown(picture, comparedOf(picture)); // the class of every map, if there is one
  const pressed = shown === (detail.shown ?? all);
  const button = make("button", { type: "button", class: "class wrap", "aria-pressed": pressed }, isolated(className(shown)));
  button.addEventListener("click", () => {
    detail.shown = detail.shown === shown ? null : shown;
    drawDetail();
    [...byId("detail-classes").querySelectorAll("button")].find((each) => each.textContent === button.textContent).focus();
  });
  const shares = asked.map((column) => {
    const { shown: kept, shares } = picture.answers[column];
    const place = kept.indexOf(shown);
    return make("td", { class: "num" }, place < 0 ? "–" : percent(shares[place]));
  });
  const head = make("th", { scope: "row" }, button, ...(shown === picture.truth ? [" (true)"] : []));
  return make("tr", {}, head, ...shares);
}

function turn(step) {
  const goal = detail.place + step;
  if (goal < 0 || goal >= found.length) return;
  Object.assign(detail, { place: goal, shown: null });
  drawDetail();
  if (document.activeElement?.disabled) byId("close").focus();
}

function readyDetail() {
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("close").addEventListener("click", () => byId("detail").close());
  byId("detail").addEventListener("click", (event) => event.target === byId("detail") && byId("detail").close());
  byId("detail").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    turn(step);
  });
  byId("detail").addEventListener("close", () => {
    if (detail.place >= state.cards) {
      state.cards = detail.place + 1;
      show();
    }
    const buttons = [...byId("shots").querySelectorAll("button")];
    buttons.forEach((button, place) => (button.tabIndex = place === detail.place ? 0 : -1));
    buttons[detail.place]?.focus();
  });
}
