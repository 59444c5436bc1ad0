// Steps that can be undone and done again, as many as fit into the memory allowed.

const STEPS = 200;
const BYTES = 64 * 1024 * 1024;

export class History {
  #done = [];
  #undone = [];
  #bytes = 0;

  clear() {
    this.#done = [];
    this.#undone = [];
    this.#bytes = 0;
  }

  /** Notes a step that has been made; `bytes` is what it holds in memory. */
  push(step, bytes = 0) {
    for (const forgotten of this.#undone) this.#bytes -= forgotten.bytes;
    this.#undone = [];
    this.#done.push({ step, bytes });
    this.#bytes += bytes;
    while (this.#done.length > 1 && (this.#done.length > STEPS || this.#bytes > BYTES)) {
      this.#bytes -= this.#done.shift().bytes;
    }
  }

  /** The step to take back, or undefined. */
  undo() {
    const entry = this.#done.pop();
    if (entry) this.#undone.push(entry);
    return entry?.step;
  }

  /** The step to make again, or undefined. */
  redo() {
    const entry = this.#undone.pop();
    if (entry) this.#done.push(entry);
    return entry?.step;
  }
}
