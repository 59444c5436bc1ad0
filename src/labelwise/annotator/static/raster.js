// Drawing into a mask: one byte per pixel, a pixel belongs to a shape when its center does; nothing is blended.

export const VOID = 255;

/** A rectangle of pixels [left, top, right, bottom), cut to the image. */
function clipped(left, top, right, bottom, width, height) {
  return [
    Math.max(0, Math.floor(left)), Math.max(0, Math.floor(top)),
    Math.min(width, Math.ceil(right)), Math.min(height, Math.ceil(bottom)),
  ];
}

/** Every pixel whose center lies inside a closed polygon by the even-odd rule; returns the rectangle touched. */
export function fillPolygon(mask, width, height, corners, value) {
  const xs = corners.map(([x]) => x);
  const ys = corners.map(([, y]) => y);
  const area = clipped(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys), width, height);
  for (let y = area[1]; y < area[3]; y++) {
    const crossings = crossingsAt(corners, y + 0.5);
    for (let pair = 0; pair + 1 < crossings.length; pair += 2) {
      const from = Math.max(0, Math.ceil(crossings[pair] - 0.5));
      const to = Math.min(width, Math.ceil(crossings[pair + 1] - 0.5));
      if (from < to) mask.fill(value, y * width + from, y * width + to);
    }
  }
  return area;
}

function crossingsAt(corners, level) {
  const found = [];
  for (let index = 0; index < corners.length; index++) {
    const [x0, y0] = corners[index];
    const [x1, y1] = corners[(index + 1) % corners.length];
    if (y0 <= level !== y1 <= level) found.push(x0 + ((level - y0) / (y1 - y0)) * (x1 - x0));
  }
  return found.sort((one, other) => one - other);
}

/** Every pixel whose center is at most `radius` from the line between two points; returns the rectangle touched. */
export function fillStroke(mask, width, height, [x0, y0], [x1, y1], radius, value) {
  const area = clipped(
    Math.min(x0, x1) - radius - 1, Math.min(y0, y1) - radius - 1,
    Math.max(x0, x1) + radius + 1, Math.max(y0, y1) + radius + 1, width, height,
  );
  const [dx, dy] = [x1 - x0, y1 - y0];
  const length = dx * dx + dy * dy;
  for (let y = area[1]; y < area[3]; y++) {
    for (let x = area[0]; x < area[2]; x++) {
      const [px, py] = [x + 0.5 - x0, y + 0.5 - y0];
      const along = length ? Math.min(Math.max((px * dx + py * dy) / length, 0), 1) : 0;
      if ((px - along * dx) ** 2 + (py - along * dy) ** 2 <= radius * radius) mask[y * width + x] = value;
    }
  }
  return area;
}

/** The pixels of a rectangle, row by row. */
export function cut(mask, width, [left, top, right, bottom]) {
  const piece = new Uint8Array(Math.max(right - left, 0) * Math.max(bottom - top, 0));
  for (let y = top; y < bottom; y++) {
    piece.set(mask.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  }
  return piece;
}

export function paste(mask, width, [left, top, right, bottom], piece) {
  for (let y = top; y < bottom; y++) {
    mask.set(piece.subarray((y - top) * (right - left), (y - top + 1) * (right - left)), y * width + left);
  }
}

/** A mask as colors on a canvas of the image's own size; `background` stays clear, void is hatched. */
export class Overlay {
  constructor(colors, background) {
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d");
    this.table = new Uint32Array(256);
    const channels = new Uint8ClampedArray(this.table.buffer);
    for (const [number, color] of colors) {
      const value = Number.parseInt(color.slice(1), 16);
      channels.set([value >> 16, (value >> 8) & 255, value & 255, number === background ? 0 : 255], number * 4);
    }
    channels.set([255, 255, 255, 200], VOID * 4);
    this.gap = new Uint32Array(new Uint8ClampedArray([235, 235, 235, 90]).buffer)[0];
  }

  resize(width, height) {
    this.canvas.width = width;
    this.canvas.height = height;
  }

  update(mask, [left, top, right, bottom]) {
    if (right <= left || bottom <= top) return;
    const width = this.canvas.width;
    const piece = new ImageData(right - left, bottom - top);
    const pixels = new Uint32Array(piece.data.buffer);
    let at = 0;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        const value = mask[y * width + x];
        pixels[at++] = value === VOID && (x + y) % 8 > 2 ? this.gap : this.table[value];
      }
    }
    this.context.putImageData(piece, left, top);
  }
}
