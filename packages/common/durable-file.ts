import { randomUUID } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { open, rename, rm, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { crc32 } from 'node:zlib';

/** Makes a new or renamed file survive a crash of the machine. */
export function syncFolder(folder: string): void {
  const fd = openSync(folder, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/**
 * Replaces a small file as a whole: written beside it with mode 0600, synced, renamed, and the folder synced. A crash or a full disk leaves the old file or
 * the new one, never a part. Throws the error of the file system.
 */
export function writeDurably(path: string, content: string | Uint8Array): void {
  const aside = nameAside(path);
  try {
    writeFileSync(aside, content, { mode: 0o600, flag: 'wx', flush: true });
    renameSync(aside, path);
  } catch (error) {
    rmSync(aside, { force: true });
    throw error;
  }
  syncFolder(dirname(path));
}

/** `writeDurably` for an event loop that must not wait for the disk. */
export async function writeDurablyAsync(path: string, content: string | Uint8Array): Promise<void> {
  const aside = nameAside(path);
  try {
    await writeFile(aside, content, { mode: 0o600, flag: 'wx', flush: true });
    await rename(aside, path);
  } catch (error) {
    await rm(aside, { force: true });
    throw error;
  }
  const folder = await open(dirname(path), 'r');
  await folder.sync().finally(() => folder.close());
}

/** A name that no other writer uses and that cannot be guessed: with `wx`, a link or a file that another user has left there is not followed. */
const nameAside = (path: string): string => `${path}.${randomUUID().slice(0, 8)}.new`;

/** A line of text with its CRC-32 in front of it. */
export const sealLine = (text: string): string => `${crc32(text).toString(16).padStart(8, '0')} ${text}`;

/** The text of a sealed line; undefined: it is not what was written. */
export function openLine(line: string): string | undefined {
  const text = line.slice(9);
  return line[8] === ' ' && line.slice(0, 8) === crc32(text).toString(16).padStart(8, '0') ? text : undefined;
}

/** A text file; undefined: it does not exist. Throws where it cannot be read. */
export function readTextFile(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}
