import { crc32 } from 'node:zlib';

/**
 * A message as the log keeps it and as the broker sends it. Layout, little-endian:
 *
 *     0  u32  bytes that follow this field
 *     4  u32  CRC-32 of all that follows this field
 *     8  f64  offset in its partition
 *    16  f64  when it was appended, milliseconds since 1970
 *    24  f64  not to be delivered before; 0: at once
 *    32  u16  bytes of the key
 *    34  u32  bytes of the headers
 *    38  key, headers (JSON of an object of strings), body
 */
export const recordOverheadBytes = 38;
export const maxRecordBytes = 16 * 1024 * 1024;

export interface RecordFields {
  readonly key: string;
  /** JSON of an object of strings. */
  readonly headers: string;
  readonly body: Uint8Array;
  /** Milliseconds since 1970; 0: at once. */
  readonly deliverAtMs: number;
}

export function recordBytes({ key, headers, body }: RecordFields): number {
  return recordOverheadBytes + Buffer.byteLength(key) + Buffer.byteLength(headers) + body.length;
}

/** A record with room for its offset, which only the partition knows. */
export function encodeRecord(fields: RecordFields): Buffer {
  const record = Buffer.allocUnsafe(recordBytes(fields));
  writeRecord(fields, record);
  return record;
}

/** The same into memory of exactly its size. */
export function writeRecord(fields: RecordFields, record: Buffer): void {
  const keyBytes = Buffer.byteLength(fields.key);
  const headerBytes = Buffer.byteLength(fields.headers);
  record.writeUInt32LE(record.length - 4, 0);
  record.writeDoubleLE(fields.deliverAtMs, 24);
  record.writeUInt16LE(keyBytes, 32);
  record.writeUInt32LE(headerBytes, 34);
  record.write(fields.key, recordOverheadBytes);
  record.write(fields.headers, recordOverheadBytes + keyBytes);
  record.set(fields.body, recordOverheadBytes + keyBytes + headerBytes);
}

/** Gives a record its place and time, and seals it. */
export function sealRecord(record: Buffer, offset: number, timestampMs: number): void {
  record.writeDoubleLE(offset, 8);
  record.writeDoubleLE(timestampMs, 16);
  record.writeUInt32LE(crc32(record.subarray(8)), 4);
}

/** Bytes of the record that begins at `at`; undefined: there is no whole, sound one. */
export function recordLengthAt(bytes: Buffer, at: number): number | undefined {
  if (bytes.length - at < recordOverheadBytes) return undefined;
  const length = bytes.readUInt32LE(at) + 4;
  return length < recordOverheadBytes || length > maxRecordBytes || at + length > bytes.length ? undefined : length;
}

/** Whether a record is what was written. */
export function isSound(record: Buffer): boolean {
  return recordOverheadBytes + record.readUInt16LE(32) + record.readUInt32LE(34) <= record.length && crc32(record.subarray(8)) === record.readUInt32LE(4);
}

export const offsetOf = (record: Buffer): number => record.readDoubleLE(8);
export const timestampOf = (record: Buffer): number => record.readDoubleLE(16);
export const deliverAtOf = (record: Buffer): number => record.readDoubleLE(24);

export interface DecodedRecord {
  readonly offset: number;
  readonly timestampMs: number;
  readonly key: string;
  readonly headers: string;
  /** A view of the record. */
  readonly body: Buffer;
}

export function decodeRecord(record: Buffer): DecodedRecord {
  const keyEnd = recordOverheadBytes + record.readUInt16LE(32);
  const headersEnd = keyEnd + record.readUInt32LE(34);
  return {
    offset: offsetOf(record),
    timestampMs: timestampOf(record),
    key: record.toString('utf8', recordOverheadBytes, keyEnd),
    headers: record.toString('utf8', keyEnd, headersEnd),
    body: record.subarray(headersEnd),
  };
}
