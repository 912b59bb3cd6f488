/**
 * As much of DNS as a proxy for names needs (RFC 1035, EDNS RFC 6891): it reads the question of a query, writes answers of addresses, and
 * finds the times to live in what an upstream server has said, without following a single compression pointer.
 */
export interface Query {
  readonly id: number;
  /** Lower case, without the dot at its end; '' is the root. */
  readonly name: string;
  readonly type: number;
  readonly class: number;
  /** Where the question ends in the message. */
  readonly questionEnd: number;
  readonly wantsRecursion: boolean;
  /** The longest answer that the client takes by UDP. */
  readonly udpLimitBytes: number;
  readonly hasEdns: boolean;
}

export const typeA = 1;
export const typeCNAME = 5;
export const typeSOA = 6;
export const typeAAAA = 28;
export const typeOPT = 41;
export const classIN = 1;

export const responseCodes = { ok: 0, formatError: 1, serverFailure: 2, noSuchName: 3, notImplemented: 4, refused: 5 } as const;
export type ResponseCode = (typeof responseCodes)[keyof typeof responseCodes];

const headerBytes = 12;
const plainUdpBytes = 512;
/** Longer UDP answers would be fragmented on common networks (DNS flag day 2020). */
const maxUdpBytes = 1232;
const maxNameBytes = 255;
/** Queries are short; what is longer than this is none. */
export const maxQueryBytes = 1232;

/** `drop`: there is nobody to answer, or it is no query; a code: answer with it. */
export function readQuery(message: Buffer): Query | 'drop' | ResponseCode {
  if (message.length < headerBytes || (message[2]! & 0x80) !== 0) return 'drop';
  if (message.length > maxQueryBytes) return responseCodes.formatError;
  if ((message[2]! & 0x78) !== 0) return responseCodes.notImplemented;
  const [questions, answers, authorities, additional] = [4, 6, 8, 10].map((at) => message.readUInt16BE(at));
  if (questions !== 1 || answers !== 0 || authorities !== 0 || additional! > 8) return responseCodes.formatError;
  const labels: string[] = [];
  let at = headerBytes;
  for (;;) {
    const length = message[at];
    if (length === undefined) return responseCodes.formatError;
    at++;
    if (length === 0) break;
    // The only name before this one is none: a pointer can lead nowhere good. The same holds for the label types that never came to be.
    if (length > 63 || at + length > message.length || at + length - headerBytes > maxNameBytes - 1) return responseCodes.formatError;
    const label = message.toString('latin1', at, at + length);
    if (/[.\x00-\x20\x7f]/.test(label)) return responseCodes.formatError;
    labels.push(label);
    at += length;
  }
  if (at + 4 > message.length) return responseCodes.formatError;
  const questionEnd = at + 4;
  let udpLimitBytes = plainUdpBytes;
  let hasEdns = false;
  // An OPT record has the root as its name; whatever else is there is passed over.
  if (additional! > 0 && message[questionEnd] === 0 && questionEnd + 11 <= message.length && message.readUInt16BE(questionEnd + 1) === typeOPT) {
    hasEdns = true;
    udpLimitBytes = Math.max(plainUdpBytes, Math.min(maxUdpBytes, message.readUInt16BE(questionEnd + 3)));
  }
  return {
    id: message.readUInt16BE(0),
    name: labels.join('.').toLowerCase(),
    type: message.readUInt16BE(at),
    class: message.readUInt16BE(at + 2),
    questionEnd,
    wantsRecursion: (message[2]! & 1) !== 0,
    udpLimitBytes,
    hasEdns,
  };
}

/** An answer without records: a refusal, or "the name is there, an address of this kind is not". Works for what could not be read too. */
export function writeEmptyAnswer(message: Buffer, query: Query | undefined, code: ResponseCode): Buffer {
  const answer = Buffer.alloc(query?.questionEnd ?? headerBytes);
  message.copy(answer, 0, 0, answer.length);
  writeHeader(answer, query, code, 0, false);
  return answer;
}

/** Addresses in the form that an answer carries them: 4 or 16 bytes. */
export type PackedAddress = Buffer;

/**
 * The addresses of a name. `alias`: the name that the addresses belong to, when it is another than the one asked for (it is told by a
 * CNAME). What does not fit into `limitBytes` is left out, and the client told that it may ask by TCP.
 */
export function writeAddresses(
  message: Buffer,
  query: Query,
  addresses: readonly PackedAddress[],
  alias: string | undefined,
  ttlSeconds: number,
  limitBytes: number,
): Buffer {
  const type = query.type;
  const aliasBytes = alias === undefined ? undefined : packName(alias);
  const addressBytes = type === typeA ? 4 : 16;
  const aliasRecord = aliasBytes === undefined ? 0 : 12 + aliasBytes.length;
  const room = limitBytes - query.questionEnd - aliasRecord;
  const count = Math.max(0, Math.min(addresses.length, Math.floor(room / (12 + addressBytes))));
  const answer = Buffer.allocUnsafe(query.questionEnd + aliasRecord + count * (12 + addressBytes));
  message.copy(answer, 0, 0, query.questionEnd);
  let at = query.questionEnd;
  let owner = headerBytes; // the name of the question
  if (aliasBytes !== undefined) {
    at = writeRecordHead(answer, at, owner, typeCNAME, ttlSeconds, aliasBytes.length);
    owner = at;
    aliasBytes.copy(answer, at);
    at += aliasBytes.length;
  }
  for (let i = 0; i < count; i++) {
    at = writeRecordHead(answer, at, owner, type, ttlSeconds, addressBytes);
    addresses[i]!.copy(answer, at);
    at += addressBytes;
  }
  writeHeader(answer, query, responseCodes.ok, count + (aliasBytes === undefined ? 0 : 1), count < addresses.length);
  return answer;
}

function writeHeader(answer: Buffer, query: Query | undefined, code: ResponseCode, answers: number, isTruncated: boolean): void {
  // QR, AA where the table answers, TC, RD as asked; RA
  answer[2] = 0x80 | (answer[2]! & 0x79) | (code === responseCodes.ok ? 0x04 : 0) | (isTruncated ? 0x02 : 0);
  answer[3] = 0x80 | code;
  answer.writeUInt16BE(query === undefined ? 0 : 1, 4);
  answer.writeUInt16BE(answers, 6);
  answer.writeUInt32BE(0, 8);
}

function writeRecordHead(answer: Buffer, at: number, owner: number, type: number, ttlSeconds: number, length: number): number {
  answer.writeUInt16BE(0xc000 | owner, at);
  answer.writeUInt16BE(type, at + 2);
  answer.writeUInt16BE(classIN, at + 4);
  answer.writeUInt32BE(ttlSeconds, at + 6);
  answer.writeUInt16BE(length, at + 10);
  return at + 12;
}

function packName(name: string): Buffer {
  const parts = name.split('.').map((label) => Buffer.concat([Buffer.from([label.length]), Buffer.from(label, 'latin1')]));
  return Buffer.concat([...parts, Buffer.from([0])]);
}

/** What a forwarder must know of an upstream server's answer. */
export interface AnswerSummary {
  readonly code: number;
  readonly isTruncated: boolean;
  /** How long it may be kept, in seconds (RFC 2308 for those that say no). */
  readonly ttlSeconds: number;
  /** Where the times to live stand, to be counted down. */
  readonly ttlOffsets: readonly number[];
}

/** undefined: it cannot be read, or is no answer to `question` (the bytes of the query's question, in its own spelling). */
export function readAnswer(answer: Buffer, question: Buffer): AnswerSummary | undefined {
  if (answer.length < headerBytes + question.length || (answer[2]! & 0x80) === 0 || answer.readUInt16BE(4) !== 1) return undefined;
  if (!isSameQuestion(answer.subarray(headerBytes, headerBytes + question.length), question)) return undefined;
  const code = answer[3]! & 0x0f;
  const isTruncated = (answer[2]! & 0x02) !== 0;
  const answers = answer.readUInt16BE(6);
  const authorities = answer.readUInt16BE(8);
  const records = answers + authorities + answer.readUInt16BE(10);
  let ttl = Number.POSITIVE_INFINITY;
  const ttlOffsets: number[] = [];
  let at = headerBytes + question.length;
  for (let i = 0; i < records; i++) {
    const end = skipName(answer, at);
    if (end === undefined || end + 10 > answer.length) return isTruncated ? { code, isTruncated, ttlSeconds: 0, ttlOffsets } : undefined;
    const type = answer.readUInt16BE(end);
    const length = answer.readUInt16BE(end + 8);
    const next = end + 10 + length;
    if (next > answer.length) return isTruncated ? { code, isTruncated, ttlSeconds: 0, ttlOffsets } : undefined;
    if (type !== typeOPT) {
      const own = answer.readUInt32BE(end + 4);
      ttlOffsets.push(end + 4);
      ttl = Math.min(ttl, own);
      // The last field of an SOA says how long a "no" may be kept.
      if (type === typeSOA && i >= answers && length >= 20) ttl = Math.min(ttl, answer.readUInt32BE(next - 4));
    }
    at = next;
  }
  return { code, isTruncated, ttlSeconds: Number.isFinite(ttl) ? ttl : 0, ttlOffsets };
}

/** Letters may come back in another case; everything else is the same. */
function isSameQuestion(a: Buffer, b: Buffer): boolean {
  return a.toString('latin1').toLowerCase() === b.toString('latin1').toLowerCase();
}

/** Where a name ends; a pointer ends it and is not followed. */
function skipName(message: Buffer, from: number): number | undefined {
  for (let at = from; at < message.length; ) {
    const length = message[at]!;
    if (length === 0) return at + 1;
    if ((length & 0xc0) === 0xc0) return at + 2 <= message.length ? at + 2 : undefined;
    if (length > 63) return undefined;
    at += 1 + length;
  }
  return undefined;
}
