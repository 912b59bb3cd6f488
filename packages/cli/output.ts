import { randomBytes } from 'node:crypto';
import { BoundedOutput, MizzenError, printableJson, printableLines, printableText } from '@mizzen/common';
import { stringify } from 'yaml';

/** How a command prints: for people, or as data. */
export type OutputFormat = 'table' | 'json' | 'yaml';

export function outputFormat(option: string | undefined): OutputFormat {
  if (option === undefined || option === 'table' || option === 'wide') return 'table';
  if (option === 'json' || option === 'yaml') return option;
  throw new MizzenError('bad-option', `-o ${option} is not known: use json or yaml, or leave it out for a table`);
}

/** Prints text on standard output. Escape sequences and other controls in it are shown, not sent: names and messages come from objects and peers. */
export function print(text: string): void {
  process.stdout.write(shown(text.endsWith('\n') ? text : `${text}\n`));
}

/** The same on standard error. */
export function printError(text: string): void {
  process.stderr.write(shown(text.endsWith('\n') ? text : `${text}\n`));
}

/** Lines of a program's own log, whose colours a terminal may show. */
export function printLog(text: string): void {
  process.stdout.write(
    text
      .split(/(\x1b\[[0-9;]{0,20}m)/)
      .map((part, i) => (i % 2 === 1 ? (usesColour ? part : '') : printableLines(part)))
      .join(''),
  );
}

/** Only what `paint` has coloured may send an escape sequence, so what begins one there cannot be guessed. */
const escapeMark = `\x1b${randomBytes(8).toString('hex')}`;
const shown = (text: string) => text.split(escapeMark).map(printableLines).join('\x1b');
const cellOf = (text: string) => text.split(escapeMark).map(printableText).join(escapeMark);

const live = new BoundedOutput(
  () => process.stdout,
  (lost) => `(${lost} lines were lost while standard output took none)\n`,
);

/** For commands that keep running: what standard output does not take is lost, and the command goes on. */
export function printLive(text: string): void {
  live.write(shown(text.endsWith('\n') ? text : `${text}\n`));
}

export function printData(value: unknown, format: Exclude<OutputFormat, 'table'>): void {
  print(format === 'json' ? printableJson(value, 2) : stringify(value));
}

/** Columns that are as wide as their widest cell, two spaces apart. */
export function formatTable(header: readonly string[], given: readonly (readonly string[])[]): string {
  const rows = given.map((row) => row.map(cellOf));
  const widths = header.map((name, i) => Math.max(visibleLength(name), ...rows.map((row) => visibleLength(row[i] ?? ''))));
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, i) => (i === cells.length - 1 ? cell : cell + ' '.repeat(widths[i]! - visibleLength(cell) + 2)))
      .join('')
      .trimEnd();
  return [line(header), ...rows.map(line)].join('\n');
}

const escapes = new RegExp(`${escapeMark}\\[[0-9]+m`, 'g');
const visibleLength = (text: string) => text.replace(escapes, '').length;

const usesColour = process.stdout.isTTY === true && process.env['NO_COLOR'] === undefined;
const codes = { red: 31, green: 32, yellow: 33, blue: 34, magenta: 35, cyan: 36, bold: 1, dim: 2 } as const;

export function paint(text: string, colour: keyof typeof codes): string {
  return usesColour ? `${escapeMark}[${codes[colour]}m${text}${escapeMark}[0m` : text;
}
