// Image tags: which classes are in this image, one key each.

import { imagePath } from "./api.js";
import { ClassButtons } from "./classes.js";
import { ImageMode } from "./imagemode.js";

export class TagsMode extends ImageMode {
  help = [
    ["a class's letter", "the class is in the image, or is not"], ["/", "search a class by its name"],
    ["Enter", "save, next image"], ["Ctrl-S", "save"], ["← →", "previous, next image"], ["+  −  0", "zoom in, out, back"],
  ];

  constructor(app) {
    super(app, "tags", "Tags", "Image tags");
    this.tags = new Set();
    this.classes = new ClassButtons(this.classList, (entry) => this.toggle(entry.number), { toggles: true });
    this.tools.append(this.classes.element);
  }

  load(labels, draft) {
    this.tags = new Set(draft ?? labels.tags ?? []);
    this.known = labels.tags !== null;
  }

  state() {
    return [...this.tags].sort((one, other) => one - other);
  }

  standing() {
    return this.known ? "Saved" : "Not tagged yet";
  }

  noted() {
    this.known = true;
  }

  send(id, answer, seconds, tags) {
    return this.app.outbox.send(imagePath("tags", id), () => ({ answer, revision: this.revisions.get(id), tags, seconds }));
  }

  toggle(number) {
    if (!this.ready) return;
    if (!this.tags.delete(number)) this.tags.add(number);
    const entry = this.app.classOf(number);
    this.app.say(`${entry.name} ${this.tags.has(number) ? "on" : "off"}`);
    this.touch();
  }

  search() {
    this.classes.search((entry) => this.toggle(entry.number));
  }

  letter(key, event) {
    const entry = this.classes.byKey(key);
    if (entry) this.toggle(entry.number);
    else if (/[a-z1-9]/.test(key)) this.app.fail(`No class has the key “${event.key}”.`);
    return Boolean(entry);
  }

  paint() {}

  render() {
    this.classes.press(this.tags);
  }
}
