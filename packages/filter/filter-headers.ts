/** Header fields of a message; names are compared without regard to case, and kept in lower case. */
export class FilterHeaders {
  #fields: (readonly [string, string])[];
  #isChanged: boolean;

  constructor(fields: Iterable<readonly [string, string]> = []) {
    this.#fields = [...fields].map(([name, value]) => [name.toLowerCase(), value]);
    this.#isChanged = false;
  }

  /** The first value; undefined when there is none. */
  get(name: string): string | undefined {
    const wanted = name.toLowerCase();
    return this.#fields.find(([candidate]) => candidate === wanted)?.[1];
  }

  getAll(name: string): string[] {
    const wanted = name.toLowerCase();
    return this.#fields.filter(([candidate]) => candidate === wanted).map(([, value]) => value);
  }

  has(name: string): boolean {
    return this.get(name) !== undefined;
  }

  /** Makes the field have this one value, written as UTF-8. Throws TypeError for control characters and halves of surrogate pairs. */
  set(name: string, value: string): void {
    this.delete(name);
    this.append(name, value);
  }

  append(name: string, value: string): void {
    const lower = name.toLowerCase();
    if (!/^[!#$%&'*+\-.^_`|~0-9a-z]+$/.test(lower)) throw new TypeError(`${JSON.stringify(name)} cannot be the name of a header`);
    if (/[\x00-\x08\x0a-\x1f\x7f]/.test(value) || !value.isWellFormed()) throw new TypeError(`the value of ${name} holds characters that no header can hold`);
    this.#fields.push([lower, value]);
    this.#isChanged = true;
  }

  delete(name: string): void {
    const wanted = name.toLowerCase();
    const rest = this.#fields.filter(([candidate]) => candidate !== wanted);
    if (rest.length === this.#fields.length) return;
    this.#fields = rest;
    this.#isChanged = true;
  }

  get isChanged(): boolean {
    return this.#isChanged;
  }

  [Symbol.iterator](): Iterator<readonly [string, string]> {
    return this.#fields[Symbol.iterator]();
  }
}
