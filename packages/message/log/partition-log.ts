import { closeSync, fdatasync, fsyncSync, mkdirSync, openSync, read, readdirSync, rmSync, writev } from 'node:fs';
import { messageOf } from '@mizzen/common';
import { offsetOf, recordLengthAt, sealRecord, timestampOf } from './record.ts';
import { Segment } from './segment.ts';

export interface LogSettings {
  readonly segmentBytes: number;
  /** 0: records are kept for ever. */
  readonly retentionMs: number;
  readonly retentionBytes: number;
  /** false: an acknowledged message survives the process, not the machine. */
  readonly syncs: boolean;
}

export const defaultLogSettings: LogSettings = { segmentBytes: 64 * 1024 * 1024, retentionMs: 7 * 24 * 3600 * 1000, retentionBytes: 0, syncs: true };

/** The newest records stay in memory, for consumers that keep up. No more than that: what outlives young collections costs old ones, which stop everybody. */
const tailBytes = 128 * 1024;

interface Waiting {
  readonly records: readonly Buffer[];
  readonly done: (firstOffset: number | Error) => void;
}

/**
 * A partition's records: appended in order, on disk before anybody hears that they are (group commit: whatever has come while the disk was
 * busy is written and synced together), read from any offset. A write that fails is answered with an error and taken back.
 */
export class PartitionLog {
  readonly folder: string;
  readonly #settings: LogSettings;
  readonly #segments: Segment[];
  /** The offset that the next record gets. Those below it are on disk. */
  #nextOffset: number;
  #waiting: Waiting[];
  #isWriting: boolean;
  #tail: Buffer[];
  #tailBytes: number;
  #isClosed: boolean;
  #idle: (() => void)[];
  readonly #onAppended: () => void;
  readonly #now: () => number;

  /** Opens or makes the partition in `folder`. `onAppended`: there is more to read. */
  constructor(folder: string, settings: LogSettings, onAppended: () => void, now: () => number = Date.now) {
    this.folder = folder;
    this.#settings = settings;
    this.#onAppended = onAppended;
    this.#now = now;
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const bases = readdirSync(folder)
      .filter((name) => /^\d{16}\.log$/.test(name))
      .map((name) => Number(name.slice(0, 16)))
      .sort((a, b) => a - b);
    this.#segments = (bases.length === 0 ? [0] : bases).map((base) => new Segment(folder, base));
    this.#nextOffset = this.#segments.at(-1)!.recover();
    this.#waiting = [];
    this.#isWriting = false;
    this.#tail = [];
    this.#tailBytes = 0;
    this.#isClosed = false;
    this.#idle = [];
    if (bases.length === 0) syncFolder(folder);
  }

  get nextOffset(): number {
    return this.#nextOffset;
  }

  /** The oldest offset that is still there. */
  get firstOffset(): number {
    return this.#segments[0]!.baseOffset;
  }

  get sizeBytes(): number {
    return this.#segments.reduce((sum, segment) => sum + segment.sizeBytes, 0);
  }

  /** Appends records (of `encodeRecord`) behind one another. `done` is told the first one's offset when all are on disk, or why they are not. */
  append(records: readonly Buffer[], done: (firstOffset: number | Error) => void): void {
    if (this.#isClosed) return done(new Error('the log is closed'));
    this.#waiting.push({ records, done });
    // What else comes in this turn of the event loop is written together with it.
    if (!this.#isWriting) {
      this.#isWriting = true;
      setImmediate(() => this.#write());
    }
  }

  #write(): void {
    const batch = this.#waiting;
    if (batch.length === 0 || this.#isClosed) {
      this.#isWriting = false;
      for (const { done } of batch) done(new Error('the log is closed'));
      this.#waiting = [];
      for (const idle of this.#idle.splice(0)) idle();
      return;
    }
    this.#waiting = [];
    let segment: Segment;
    try {
      segment = this.#activeSegment();
    } catch (error) {
      return this.#failed(batch, undefined, error as Error);
    }
    const now = this.#now();
    const buffers: Buffer[] = [];
    let offset = this.#nextOffset;
    for (const { records } of batch)
      for (const record of records) {
        sealRecord(record, offset++, now);
        buffers.push(record);
      }
    writeAll(segment.fd, joinNeighbours(buffers), (error) => {
      if (error !== undefined) return this.#failed(batch, segment, error);
      if (!this.#settings.syncs) return this.#written(batch, buffers, segment, now);
      fdatasync(segment.fd, (syncError) => (syncError === null ? this.#written(batch, buffers, segment, now) : this.#failed(batch, segment, syncError)));
    });
  }

  #written(batch: readonly Waiting[], buffers: readonly Buffer[], segment: Segment, now: number): void {
    let first = this.#nextOffset;
    for (const record of buffers) {
      segment.appended(this.#nextOffset++, record.length, now);
      this.#tail.push(record);
      this.#tailBytes += record.length;
    }
    while (this.#tailBytes > tailBytes && this.#tail.length > 1) this.#tailBytes -= this.#tail.shift()!.length;
    for (const { records, done } of batch) {
      done(first);
      first += records.length;
    }
    this.#onAppended();
    this.#write();
  }

  /** What may have been written in part is taken back, so that nothing is found later that nobody was told of. */
  #failed(batch: readonly Waiting[], segment: Segment | undefined, error: Error): void {
    if (segment !== undefined) {
      try {
        segment.cutBack();
      } catch {
        // The next record is written behind it; recovery reads up to what is unsound. A new segment leaves it behind.
        this.#segments.push(new Segment(this.folder, this.#nextOffset));
      }
    }
    for (const { done } of batch) done(new Error(`the message cannot be stored: ${messageOf(error)}`));
    this.#write();
  }

  #activeSegment(): Segment {
    const last = this.#segments.at(-1)!;
    if (last.sizeBytes < this.#settings.segmentBytes) return last;
    last.seal();
    const next = new Segment(this.folder, this.#nextOffset);
    syncFolder(this.folder);
    this.#segments.push(next);
    return next;
  }

  /**
   * Records from an offset on, up to `maxBytes`, at least one if there is any; from memory where they are there. Offsets below the first that is
   * kept begin at the first. `done` may be called before this returns.
   */
  read(from: number, maxBytes: number, done: (records: readonly Buffer[]) => void): void {
    const offset = Math.max(from, this.firstOffset);
    if (offset >= this.#nextOffset) return done([]);
    const tailStart = this.#nextOffset - this.#tail.length;
    if (offset >= tailStart) {
      const records: Buffer[] = [];
      let bytes = 0;
      for (let i = offset - tailStart; i < this.#tail.length && (records.length === 0 || bytes + this.#tail[i]!.length <= maxBytes); i++) {
        records.push(this.#tail[i]!);
        bytes += this.#tail[i]!.length;
      }
      return done(records);
    }
    const segment = this.#segments.findLast((candidate) => candidate.baseOffset <= offset)!;
    this.#readFile(segment, segment.positionBefore(offset), offset, maxBytes, done);
  }

  #readFile(segment: Segment, position: number, offset: number, maxBytes: number, done: (records: readonly Buffer[]) => void): void {
    const wanted = Math.min(maxBytes + 64 * 1024, segment.sizeBytes - position);
    if (wanted <= 0) return done([]);
    const bytes = Buffer.allocUnsafe(wanted);
    read(segment.fd, bytes, 0, wanted, position, (error, count) => {
      if (error !== null || count === 0) return done([]);
      const records: Buffer[] = [];
      let at = 0;
      let taken = 0;
      const held = bytes.subarray(0, count);
      for (let length = recordLengthAt(held, at); length !== undefined; length = recordLengthAt(held, at)) {
        const record = held.subarray(at, at + length);
        at += length;
        if (offsetOf(record) < offset) continue;
        if (records.length > 0 && taken + length > maxBytes) break;
        records.push(record);
        taken += length;
      }
      if (records.length > 0) return done(records);
      // A record that is longer than what was read, or all of it lay before the offset.
      if (at > 0) return this.#readFile(segment, position + at, offset, maxBytes, done);
      const needed = held.length >= 4 ? held.readUInt32LE(0) + 4 : 0;
      if (needed <= held.length || position + needed > segment.sizeBytes) return done([]);
      this.#readFile(segment, position, offset, needed, done);
    });
  }

  /** The first offset of a record that was appended at this time or later. */
  async offsetAt(timestampMs: number): Promise<number> {
    const segment = this.#segments.find((candidate) => candidate.lastTimestampMs >= timestampMs);
    if (segment === undefined) return this.#nextOffset;
    for (let offset = segment.baseOffset; ; ) {
      const records = await new Promise<readonly Buffer[]>((resolve) => this.read(offset, 256 * 1024, resolve));
      if (records.length === 0) return this.#nextOffset;
      const found = records.find((record) => timestampOf(record) >= timestampMs);
      if (found !== undefined) return offsetOf(found);
      offset = offsetOf(records.at(-1)!) + 1;
    }
  }

  /** Drops whole segments that are too old, or too many bytes; the newest always stays. Returns how many records went. */
  enforceRetention(): number {
    const { retentionMs, retentionBytes } = this.#settings;
    const before = this.firstOffset;
    let bytes = this.sizeBytes;
    while (this.#segments.length > 1) {
      const oldest = this.#segments[0]!;
      const isTooOld = retentionMs > 0 && this.#now() - oldest.lastTimestampMs > retentionMs;
      const isTooMuch = retentionBytes > 0 && bytes > retentionBytes;
      if (!isTooOld && !isTooMuch) break;
      this.#segments.shift();
      bytes -= oldest.sizeBytes;
      oldest.close();
      rmSync(oldest.path, { force: true });
      rmSync(`${oldest.path.slice(0, -4)}.index`, { force: true });
    }
    for (const segment of this.#segments.slice(0, -1)) segment.forgetIndex();
    return this.firstOffset - before;
  }

  /** What is under way is written; what comes later is refused. */
  async close(): Promise<void> {
    if (this.#isWriting) await new Promise<void>((resolve) => this.#idle.push(resolve));
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const segment of this.#segments) segment.close();
  }
}

/** Records that lie behind one another in memory, as those of one publication do, are one piece. */
function joinNeighbours(records: readonly Buffer[]): Buffer[] {
  const pieces: Buffer[] = [];
  for (let first = 0; first < records.length; ) {
    const { buffer, byteOffset } = records[first]!;
    let end = byteOffset + records[first]!.length;
    let next = first + 1;
    while (next < records.length && records[next]!.buffer === buffer && records[next]!.byteOffset === end) end += records[next++]!.length;
    pieces.push(next === first + 1 ? records[first]! : Buffer.from(buffer, byteOffset, end - byteOffset));
    first = next;
  }
  return pieces;
}

function writeAll(fd: number, buffers: readonly Buffer[], done: (error: Error | undefined) => void): void {
  // The system takes 1024 pieces at once.
  const part = buffers.length > 1000 ? buffers.slice(0, 1000) : buffers;
  const total = part.reduce((sum, buffer) => sum + buffer.length, 0);
  writev(fd, part as Buffer[], (error, written) => {
    if (error !== null) return done(error);
    if (written === total) return buffers.length > part.length ? writeAll(fd, buffers.slice(part.length), done) : done(undefined);
    // A full disk takes a part before it says so.
    let at = written;
    const rest: Buffer[] = [];
    for (const buffer of buffers) {
      if (at >= buffer.length) at -= buffer.length;
      else {
        rest.push(at > 0 ? buffer.subarray(at) : buffer);
        at = 0;
      }
    }
    writeAll(fd, rest, done);
  });
}

/** A file is there after a crash of the machine when its folder has been synced. */
function syncFolder(folder: string): void {
  const fd = openSync(folder, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
