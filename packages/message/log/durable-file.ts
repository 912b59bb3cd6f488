import { closeSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeSync } from 'node:fs';
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
 * Replaces a small file as a whole: written beside it, synced, renamed, and the folder synced. A crash or a full disk leaves the old file or the new one,
 * never a part. Throws the error of the file system.
 */
export function writeDurably(path: string, text: string): void {
  const aside = `${path}.new`;
  const bytes = Buffer.from(text);
  try {
    const fd = openSync(aside, 'w', 0o600);
    try {
      for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(aside, path);
  } catch (error) {
    rmSync(aside, { force: true, recursive: true });
    throw error;
  }
  syncFolder(dirname(path));
}

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
