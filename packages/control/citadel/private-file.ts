import { chmodSync, existsSync, mkdirSync, readFileSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { MizzenError } from '@mizzen/common';
import { writeDurably } from '@mizzen/common/durable-file';

/** Files that only their owner may read: keys and tokens. Written whole or not at all. */
export function writePrivateFile(path: string, content: string): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  writeDurably(path, content);
}

/** Reads a private file, mending its mode if others could read it; undefined when there is none. */
export function readPrivateFile(path: string): string | undefined {
  if (!existsSync(path)) return undefined;
  if ((statSync(path).mode & 0o077) !== 0) chmodSync(path, 0o600);
  const content = readFileSync(path, 'utf8');
  if (content.trim() === '') throw new MizzenError('empty-file', 'the file is empty. Restore it, or remove it to have a new one made.', path);
  return content;
}
