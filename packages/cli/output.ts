import { MizzenError } from '@mizzen/common';
import { stringify } from 'yaml';

/** How a command prints: for people, or as data. */
export type OutputFormat = 'table' | 'json' | 'yaml';

export function outputFormat(option: string | undefined): OutputFormat {
  if (option === undefined || option === 'table' || option === 'wide') return 'table';
  if (option === 'json' || option === 'yaml') return option;
  throw new MizzenError('bad-option', `-o ${option} is not known: use json or yaml, or leave it out for a table`);
}

export function print(text: string): void {
  process.stdout.write(text.endsWith('\n') ? text : `${text}\n`);
}

export function printData(value: unknown, format: Exclude<OutputFormat, 'table'>): void {
  print(format === 'json' ? JSON.stringify(value, null, 2) : stringify(value));
}

/** Columns that are as wide as their widest cell, two spaces apart. */
export function formatTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((name, i) => Math.max(visibleLength(name), ...rows.map((row) => visibleLength(row[i] ?? ''))));
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, i) => (i === cells.length - 1 ? cell : cell + ' '.repeat(widths[i]! - visibleLength(cell) + 2)))
      .join('')
      .trimEnd();
  return [line(header), ...rows.map(line)].join('\n');
}

const escapes = /\x1b\[[0-9;]*m/g;
const visibleLength = (text: string) => text.replace(escapes, '').length;

const usesColour = process.stdout.isTTY === true && process.env['NO_COLOR'] === undefined;
const codes = { red: 31, green: 32, yellow: 33, blue: 34, magenta: 35, cyan: 36, bold: 1, dim: 2 } as const;

export function paint(text: string, colour: keyof typeof codes): string {
  return usesColour ? `\x1b[${codes[colour]}m${text}\x1b[0m` : text;
}
