// Draws heatmaps: the map is clipped at zero, resized bilinearly with cells as areas, and divided by its maximum.

const SIDE = 224;

export function drawMap(canvas, map, [rows, columns], colormap) {
  const max = Math.max(0, ...map);
  const context = canvas.getContext("2d");
  if (canvas.width !== SIDE) canvas.width = canvas.height = SIDE;
  const image = context.createImageData(SIDE, SIDE);
  const xNeighbors = neighbors(columns);
  const yNeighbors = neighbors(rows);
  const value = (y, x) => Math.max(0, map[y * columns + x]);
  for (let y = 0, i = 0; y < SIDE; y++) {
    const [above, below, dy] = yNeighbors[y];
    for (let x = 0; x < SIDE; x++, i += 4) {
      const [left, right, dx] = xNeighbors[x];
      const interpolated = (1 - dy) * ((1 - dx) * value(above, left) + dx * value(above, right)) + dy * ((1 - dx) * value(below, left) + dx * value(below, right));
      const fraction = max > 0 ? interpolated / max : 0;
      const color = colormap[Math.round(255 * fraction)];
      image.data[i] = color[0];
      image.data[i + 1] = color[1];
      image.data[i + 2] = color[2];
      image.data[i + 3] = 255 * (0.45 + 0.55 * fraction);
    }
  }
  context.putImageData(image, 0, 0);
}

// The two nearest of `cells` cells for each pixel of a line, and the weight of the second.
function neighbors(cells) {
  return Array.from({ length: SIDE }, (_, i) => {
    const position = Math.min(Math.max((i + 0.5) * cells / SIDE - 0.5, 0), cells - 1);
    const first = Math.floor(position);
    return [first, Math.min(first + 1, cells - 1), position - first];
  });
}

// Description of the location of the map's maximum.
export function describeMaximum(map, [rows, columns]) {
  const max = Math.max(...map);
  if (!(max > 0)) return "none";
  const cell = map.indexOf(max);
  const third = (index, count) => Math.min(2, Math.floor(3 * (index + 0.5) / count));
  const vertical = ["top", "", "bottom"][third(Math.floor(cell / columns), rows)];
  const horizontal = ["left", "", "right"][third(cell % columns, columns)];
  return vertical || horizontal ? `strongest at the ${[vertical, horizontal].filter(Boolean).join(" ")}` : "strongest in the center";
}

export function drawColorScale(canvas, colormap) {
  const context = canvas.getContext("2d");
  colormap.forEach((color, i) => {
    context.fillStyle = `rgb(${color.join(" ")})`;
    context.fillRect(i, 0, 1, 1);
  });
}
