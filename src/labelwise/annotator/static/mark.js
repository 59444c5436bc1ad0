// The queried pixel: the red disc of the paper, the whole image small beside it, and a loupe.

const RADIUS = 5;
const RIM = 2;
const LOUPE = 11; // image pixels across
const GAP = 10;

export function paintMark(context, left, top, radius = RADIUS) {
  context.beginPath();
  context.arc(left, top, radius + RIM, 0, 2 * Math.PI);
  context.fillStyle = "#ffffff";
  context.fill();
  context.beginPath();
  context.arc(left, top, radius, 0, 2 * Math.PI);
  context.fillStyle = "#e00000";
  context.fill();
}

function frame(context, left, top, width, height) {
  context.fillStyle = "#ffffff";
  context.fillRect(left - 3, top - 3, width + 6, height + 6);
  context.fillStyle = "#1b1f24";
  context.fillRect(left - 1, top - 1, width + 2, height + 2);
}

/** The whole image with the place marked, and the pixel with its neighbours; on the side where the mark is not. */
export function paintInsets(context, viewer, query) {
  const { clientWidth, clientHeight } = viewer.canvas;
  const side = Math.min(150, clientWidth * 0.28, clientHeight * 0.34);
  const [markLeft] = viewer.toScreen(query.x + 0.5, query.y + 0.5);
  const onLeft = markLeft > clientWidth / 2 + 1;
  const place = (width) => (onLeft ? GAP : clientWidth - width - GAP);
  if (viewer.zoom > 1.05) paintWhole(context, viewer, query, side, place);
  const loupe = Math.round(side * 0.66);
  paintLoupe(context, viewer.bitmap, query, place(loupe), clientHeight - loupe - GAP, loupe);
}

function paintWhole(context, viewer, query, side, place) {
  const share = side / Math.max(viewer.width, viewer.height);
  const [width, height] = [viewer.width * share, viewer.height * share];
  const left = place(width);
  frame(context, left, GAP, width, height);
  context.imageSmoothingEnabled = true;
  context.drawImage(viewer.bitmap, left, GAP, width, height);
  paintMark(context, left + (query.x + 0.5) * share, GAP + (query.y + 0.5) * share, 3);
}

function paintLoupe(context, bitmap, query, left, top, side) {
  const cell = side / LOUPE;
  const reach = (LOUPE - 1) / 2;
  frame(context, left, top, side, side);
  context.imageSmoothingEnabled = false;
  context.drawImage(bitmap, query.x - reach, query.y - reach, LOUPE, LOUPE, left, top, side, side);
  const corner = [left + reach * cell, top + reach * cell];
  context.lineWidth = 3;
  context.strokeStyle = "#ffffff";
  context.strokeRect(corner[0] - 1, corner[1] - 1, cell + 2, cell + 2);
  context.lineWidth = 1.5;
  context.strokeStyle = "#e00000";
  context.strokeRect(corner[0] - 1, corner[1] - 1, cell + 2, cell + 2);
}
