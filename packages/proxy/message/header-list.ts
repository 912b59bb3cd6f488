import { isHeaderName, verifiedValue } from './header-bytes.ts';
import { type HeaderCase, writeName } from './header-case.ts';
import { foldedName, isWatchedName } from './owned-headers.ts';

/**
 * The header fields of one message, in their order. Fields received by HTTP/1.1 stay where they are, in the text of the head: a field is
 * five numbers and its lower-case name, and only becomes a string when somebody reads or changes it. Fields that nobody touched are
 * forwarded with their case, whole runs of them as one piece of the text. Fields received by HTTP/2 are names and values.
 *
 * It holds legal byte strings only (./header-bytes.ts): what the codecs received has been verified by them, all else is verified as it enters,
 * so that whatever writes the list cannot write a line that is not a field of it.
 */
export class HeaderList {
  readonly names: string[];
  /** Some received name is one that the proxy may own (`isWatchedName`): saves looking for those headers in the many messages that have none. */
  hasWatchedNames: boolean;
  /** Some received name has characters that CGI turns into `_` (`isAlias`): what the proxy sets or removes goes in every spelling. */
  hasAliases: boolean;
  #text: string;
  /**
   * Four numbers for each field: start and end of its value, start and end of its line. The line's start is -1 once it was changed. Only
   * where there is a text.
   */
  #spans: number[] | undefined;
  /** Values that were set, by position; made when the first one is. */
  #values: (string | undefined)[] | undefined;

  constructor() {
    this.names = [];
    this.hasWatchedNames = false;
    this.hasAliases = false;
    this.#text = '';
    this.#spans = undefined;
    this.#values = undefined;
  }

  /** The text that the numbers given to `addReceived` count in. */
  begin(text: string): void {
    this.#text = text;
    this.#spans = [];
  }

  /** Adds a field of the text: its value lies from `valueStart` to `valueEnd`, its line from `lineStart` to `lineEnd`, CRLF included. */
  addReceived(name: string, valueStart: number, valueEnd: number, lineStart: number, lineEnd: number): void {
    if (isWatchedName(name)) this.hasWatchedNames = true;
    this.names.push(name);
    this.#spans!.push(valueStart, valueEnd, lineStart, lineEnd);
  }

  valueAt(at: number): string {
    const set = this.#values?.[at];
    return set !== undefined ? set : this.#text.substring(this.#spans![at * 4]!, this.#spans![at * 4 + 1]!);
  }

  /** The first value of a field, or undefined. */
  get(name: string): string | undefined {
    const at = this.names.indexOf(name);
    return at < 0 ? undefined : this.valueAt(at);
  }

  has(name: string): boolean {
    return this.names.indexOf(name) >= 0;
  }

  /** All values of a field joined with commas, as RFC 9110 section 5.3 lets a recipient read them; undefined when it is absent. */
  getJoined(name: string): string | undefined {
    const first = this.names.indexOf(name);
    if (first < 0) return undefined;
    let joined = this.valueAt(first);
    for (let at = this.names.indexOf(name, first + 1); at >= 0; at = this.names.indexOf(name, at + 1)) joined += `,${this.valueAt(at)}`;
    return joined;
  }

  /** All values of a field, in their order. */
  getAll(name: string): string[] {
    const values: string[] = [];
    for (let at = this.names.indexOf(name); at >= 0; at = this.names.indexOf(name, at + 1)) values.push(this.valueAt(at));
    return values;
  }

  /** Adds a field. One whose name is not a token is left out. */
  add(name: string, value: string): void {
    if (isHeaderName(name)) this.addVerified(name, verifiedValue(value));
  }

  /** Adds a field that the codec which received it has verified. */
  addVerified(name: string, value: string): void {
    const spans = this.#spans;
    if (spans === undefined) (this.#values ??= []).push(value);
    else {
      (this.#values ??= [])[this.names.length] = value;
      spans.push(0, 0, -1, -1);
    }
    this.names.push(name);
  }

  /** Makes a field have this one value, in this one spelling. */
  set(name: string, value: string): void {
    if (this.hasAliases || name.includes('_')) this.removeAliases(name);
    const at = this.names.indexOf(name);
    if (at < 0) return this.add(name, value);
    this.#setAt(at, name, verifiedValue(value));
  }

  /** `set` for a value that is known to be legal: made of digits, or verified once for many requests. */
  setVerified(name: string, value: string): void {
    if (this.hasAliases) this.removeAliases(name);
    const at = this.names.indexOf(name);
    if (at < 0) this.addVerified(name, value);
    else this.#setAt(at, name, value);
  }

  #setAt(at: number, name: string, value: string): void {
    (this.#values ??= [])[at] = value;
    if (this.#spans !== undefined) this.#spans[at * 4 + 2] = -1;
    for (let other = this.names.indexOf(name, at + 1); other >= 0; other = this.names.indexOf(name, other)) this.#removeAt(other);
  }

  /** Takes a field away, in every spelling. */
  remove(name: string): void {
    if (this.hasAliases || name.includes('_')) this.removeAliases(name);
    for (let at = this.names.indexOf(name); at >= 0; at = this.names.indexOf(name, at)) this.#removeAt(at);
  }

  /** Takes away what an application behind CGI could not tell from this field: other spellings of its name (`foldedName`). */
  removeAliases(name: string): void {
    const folded = foldedName(name);
    for (let at = this.names.length - 1; at >= 0; at--) {
      const other = this.names[at]!;
      if (other.length === name.length && other !== name && foldedName(other) === folded) this.#removeAt(at);
    }
  }

  /** Takes away every field whose name fits. */
  removeWhere(isMeant: (name: string) => boolean): void {
    for (let at = this.names.length - 1; at >= 0; at--) if (isMeant(this.names[at]!)) this.#removeAt(at);
  }

  /** The fields as they go on the wire, each with its CRLF. */
  serialize(headerCase: HeaderCase = 'preserve'): string {
    let out = '';
    const spans = this.#spans;
    if (headerCase !== 'preserve' || spans === undefined) {
      for (let i = 0; i < this.names.length; i++) out += `${writeName(this.names[i]!, headerCase)}: ${this.valueAt(i)}\r\n`;
      return out;
    }
    let runStart = -1;
    let runEnd = -1;
    for (let i = 0; i < this.names.length; i++) {
      const start = spans[i * 4 + 2]!;
      if (start === runEnd && start >= 0) {
        runEnd = spans[i * 4 + 3]!;
        continue;
      }
      if (runStart >= 0) out += this.#text.substring(runStart, runEnd);
      if (start >= 0) {
        runStart = start;
        runEnd = spans[i * 4 + 3]!;
      } else {
        out += `${this.names[i]}: ${this.valueAt(i)}\r\n`;
        runStart = -1;
        runEnd = -1;
      }
    }
    return runStart >= 0 ? out + this.#text.substring(runStart, runEnd) : out;
  }

  #removeAt(at: number): void {
    this.names.splice(at, 1);
    this.#spans?.splice(at * 4, 4);
    this.#values?.splice(at, 1);
  }
}
