// A map in colour: cut at zero, divided by its maximum, enlarged bilinearly with its cells as areas.

const SIDE = 224;

export function drawMap(canvas, map, [rows, columns], colours) {
  const peak = Math.max(0, ...map);
  const context = canvas.getContext("2d");
  if (canvas.width !== SIDE) canvas.width = canvas.height = SIDE;
  const image = context.createImageData(SIDE, SIDE);
  const across = between(columns), down = between(rows);
  const at = (y, x) => Math.max(0, map[y * columns + x]);
  for (let y = 0, i = 0; y < SIDE; y++) {
    const [above, below, dy] = down[y];
    for (let x = 0; x < SIDE; x++, i += 4) {
      const [left, right, dx] = across[x];
      const value = (1 - dy) * ((1 - dx) * at(above, left) + dx * at(above, right)) + dy * ((1 - dx) * at(below, left) + dx * at(below, right));
      const share = peak > 0 ? value / peak : 0, colour = colours[Math.round(255 * share)];
      image.data[i] = colour[0];
      image.data[i + 1] = colour[1];
      image.data[i + 2] = colour[2];
      image.data[i + 3] = 255 * (0.45 + 0.55 * share);
    }
  }
  context.putImageData(image, 0, 0);
}

function between(cells) {
  return Array.from({ length: SIDE }, (_, i) => {
    const place = Math.min(Math.max((i + 0.5) * cells / SIDE - 0.5, 0), cells - 1), low = Math.floor(place);
    return [low, Math.min(low + 1, cells - 1), place - low];
  });
}

// Where the map is strongest, in words.
export function strongest(map, [rows, columns]) {
  const peak = Math.max(...map);
  if (!(peak > 0)) return "nowhere";
  const cell = map.indexOf(peak), third = (place, count) => Math.min(2, Math.floor(3 * (place + 0.5) / count));
  const down = ["top", "", "bottom"][third(Math.floor(cell / columns), rows)];
  const across = ["left", "", "right"][third(cell % columns, columns)];
  return down || across ? `most at the ${[down, across].filter(Boolean).join(" ")}` : "most in the middle";
}

export function drawScale(canvas, colours) {
  const context = canvas.getContext("2d");
  colours.forEach((colour, i) => {
    context.fillStyle = `rgb(${colour.join(" ")})`;
    context.fillRect(i, 0, 1, 1);
  });
}
