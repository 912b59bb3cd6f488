/**
 * Reads what a TLS ClientHello says before the handshake: server name and application protocols (RFC 8446 section 4.1.2, RFC 6066
 * section 3, RFC 7301). It decides which filter chain a connection belongs to; OpenSSL does the handshake.
 */
export interface ClientHello {
  readonly serverName: string;
  readonly alpn: readonly string[];
}

/** Bytes of the ClientHello with its record headers (16 KiB, as Envoy's `max_client_hello_size`). */
export const maxClientHelloBytes = 16 * 1024;
/** TLS records that a ClientHello may be split into. Clients send one or two; a client of one-byte records is refused. */
export const maxClientHelloRecords = 16;

const nothing: ClientHello = { serverName: '', alpn: [] };

/**
 * Reads a ClientHello as its bytes arrive. Each call continues where the last one stopped, so that the work grows with the bytes, however
 * they are cut into records and reads.
 */
export class ClientHelloReader {
  /** Where the next record begins. */
  #at: number;
  #records: number;
  /** The content of the records so far: the handshake message. */
  readonly #parts: Buffer[];
  #length: number;

  constructor() {
    this.#at = 0;
    this.#records = 0;
    this.#parts = [];
    this.#length = 0;
  }

  /**
   * `bytes`: everything that was received, of which each call sees more. `plain`: this is not TLS; `incomplete`: more is needed;
   * `refused`: too many records or bytes. Otherwise malformed TLS is a ClientHello that says nothing: OpenSSL refuses it.
   */
  read(bytes: Buffer): ClientHello | 'plain' | 'incomplete' | 'refused' {
    if (bytes.length === 0) return 'incomplete';
    if (bytes[0] !== 0x16) return 'plain';
    if (bytes.length >= 2 && bytes[1] !== 0x03) return 'plain';
    for (;;) {
      const at = this.#at;
      const tooLong = bytes.length >= maxClientHelloBytes;
      if (bytes.length < at + 5) return tooLong ? 'refused' : 'incomplete';
      if (bytes[at] !== 0x16) return nothing;
      const end = at + 5 + bytes.readUInt16BE(at + 3);
      if (bytes.length < end) return tooLong ? 'refused' : 'incomplete';
      this.#parts.push(bytes.subarray(at + 5, end));
      this.#length += end - at - 5;
      this.#at = end;
      this.#records++;
      if (this.#length >= 4) {
        const message = this.#message();
        const length = message.readUIntBE(1, 3);
        if (message[0] !== 0x01) return nothing;
        if (message.length >= 4 + length) return readWhole(message.subarray(4, 4 + length));
      }
      if (this.#records >= maxClientHelloRecords) return 'refused';
    }
  }

  /** The content so far in one piece. It is joined at most once for each record, of which there are few. */
  #message(): Buffer {
    if (this.#parts.length > 1) this.#parts.splice(0, this.#parts.length, Buffer.concat(this.#parts));
    return this.#parts[0]!;
  }
}

/** The same for bytes that are there at once. */
export function readClientHello(bytes: Buffer): ReturnType<ClientHelloReader['read']> {
  return new ClientHelloReader().read(bytes);
}

function readWhole(message: Buffer): ClientHello {
  try {
    return readMessage(message);
  } catch (error) {
    if (error instanceof RangeError) return nothing; // a length that points outside the message
    throw error;
  }
}

function readMessage(message: Buffer): ClientHello {
  let at = 2 + 32; // legacy_version, random
  at += 1 + message.readUInt8(at); // legacy_session_id
  at += 2 + message.readUInt16BE(at); // cipher_suites
  at += 1 + message.readUInt8(at); // legacy_compression_methods
  let serverName = '';
  let alpn: string[] = [];
  if (at >= message.length) return { serverName, alpn };
  const end = Math.min(message.length, at + 2 + message.readUInt16BE(at));
  at += 2;
  while (at + 4 <= end) {
    const type = message.readUInt16BE(at);
    const length = message.readUInt16BE(at + 2);
    const data = message.subarray(at + 4, at + 4 + length);
    if (type === 0 && data.length >= 5 && data[2] === 0) serverName = data.toString('latin1', 5, 5 + data.readUInt16BE(3)).toLowerCase();
    else if (type === 16) alpn = readProtocols(data);
    at += 4 + length;
  }
  return { serverName, alpn };
}

function readProtocols(data: Buffer): string[] {
  const names: string[] = [];
  for (let at = 2; at < data.length && names.length < 32; ) {
    const length = data[at]!;
    names.push(data.toString('latin1', at + 1, at + 1 + length));
    at += 1 + length;
  }
  return names;
}
