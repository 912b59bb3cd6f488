/**
 * The header fields of one message, in their order. Names are lower case; `lines` keeps each field as it was received, so that a field
 * that nobody touches is forwarded with its case and without being put together again. A line is '' once its field was changed.
 */
export class HeaderList {
  readonly names: string[];
  readonly values: string[];
  readonly lines: string[];

  constructor() {
    this.names = [];
    this.values = [];
    this.lines = [];
  }

  /** Adds a field as it was received: `line` is `Name: value` with its CRLF. */
  addReceived(name: string, value: string, line: string): void {
    this.names.push(name);
    this.values.push(value);
    this.lines.push(line);
  }

  /** The first value of a field, or undefined. */
  get(name: string): string | undefined {
    const at = this.names.indexOf(name);
    return at < 0 ? undefined : this.values[at];
  }

  has(name: string): boolean {
    return this.names.indexOf(name) >= 0;
  }

  /** All values of a field joined with commas, as RFC 9110 section 5.3 lets a recipient read them; undefined when it is absent. */
  getJoined(name: string): string | undefined {
    const first = this.names.indexOf(name);
    if (first < 0) return undefined;
    let joined = this.values[first]!;
    for (let at = this.names.indexOf(name, first + 1); at >= 0; at = this.names.indexOf(name, at + 1)) joined += `,${this.values[at]}`;
    return joined;
  }

  add(name: string, value: string): void {
    this.names.push(name);
    this.values.push(value);
    this.lines.push('');
  }

  /** Makes a field have this one value. */
  set(name: string, value: string): void {
    const at = this.names.indexOf(name);
    if (at < 0) return this.add(name, value);
    this.values[at] = value;
    this.lines[at] = '';
    for (let other = this.names.indexOf(name, at + 1); other >= 0; other = this.names.indexOf(name, other)) this.#removeAt(other);
  }

  remove(name: string): void {
    for (let at = this.names.indexOf(name); at >= 0; at = this.names.indexOf(name, at)) this.#removeAt(at);
  }

  /** The fields as they go on the wire, each with its CRLF. */
  serialize(): string {
    let text = '';
    for (let i = 0; i < this.names.length; i++) {
      const line = this.lines[i]!;
      text += line !== '' ? line : `${this.names[i]}: ${this.values[i]}\r\n`;
    }
    return text;
  }

  #removeAt(at: number): void {
    this.names.splice(at, 1);
    this.values.splice(at, 1);
    this.lines.splice(at, 1);
  }
}
