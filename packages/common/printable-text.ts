/**
 * Text from a peer, an object or a file as logs and terminals show it. Escaped are: control characters (C0 without the tab, DEL, and C1, of which U+009B begins a terminal's
 * escape sequence), marks that reorder or hide what is shown (bidirectional controls, zero-width characters, tags), line and paragraph
 * separators, and halves of surrogate pairs. The one function for this; access logs, which hold bytes, have the same set in ../proxy/telemetry/access-log.ts.
 */
export function printableText(text: string): string {
  return text.replace(unprintable, (character) => {
    const code = character.codePointAt(0) ?? 0;
    return code <= 0xff ? `\\x${hex(code, 2)}` : code <= 0xffff ? `\\u${hex(code, 4)}` : `\\u{${hex(code, 1)}}`;
  });
}

/** The same for text of several lines. */
export function printableLines(text: string): string {
  return text.split('\n').map(printableText).join('\n');
}

/** JSON with the same characters escaped as JSON escapes them: it is read as the same value. */
export function printableJson(value: unknown, indent?: number): string {
  const text = (JSON.stringify(value, null, indent) as string | undefined) ?? 'null';
  return text.replace(unprintable, (found) => (found === '\n' ? found : found.replace(/./gs, (unit) => `\\u${hex(unit.charCodeAt(0), 4)}`)));
}

const hex = (code: number, length: number) => code.toString(16).padStart(length, '0');

const unprintable =
  /[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udc7f]/g;
