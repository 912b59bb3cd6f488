/**
 * Reads what a TLS ClientHello says before the handshake: server name and application protocols (RFC 8446 section 4.1.2, RFC 6066
 * section 3, RFC 7301). It decides which filter chain a connection belongs to; OpenSSL does the handshake.
 */
export interface ClientHello {
  readonly serverName: string;
  readonly alpn: readonly string[];
}

export const maxClientHelloBytes = 16 * 1024;

/** `plain`: these bytes are no TLS; `incomplete`: more are needed. Malformed TLS is a ClientHello that says nothing: OpenSSL refuses it. */
export function readClientHello(bytes: Buffer): ClientHello | 'plain' | 'incomplete' {
  if (bytes.length === 0) return 'incomplete';
  if (bytes[0] !== 0x16) return 'plain';
  if (bytes.length >= 2 && bytes[1] !== 0x03) return 'plain';
  const nothing: ClientHello = { serverName: '', alpn: [] };
  // The handshake message may be spread over several records.
  let message = Buffer.alloc(0);
  for (let at = 0; ; ) {
    if (bytes.length < at + 5) return bytes.length >= maxClientHelloBytes ? nothing : 'incomplete';
    if (bytes[at] !== 0x16) return nothing;
    const length = bytes.readUInt16BE(at + 3);
    if (bytes.length < at + 5 + length) return bytes.length >= maxClientHelloBytes ? nothing : 'incomplete';
    message = Buffer.concat([message, bytes.subarray(at + 5, at + 5 + length)]);
    at += 5 + length;
    if (message.length >= 4 && message.length >= 4 + message.readUIntBE(1, 3)) break;
    if (at >= bytes.length) return bytes.length >= maxClientHelloBytes ? nothing : 'incomplete';
  }
  if (message[0] !== 0x01) return nothing;
  try {
    return readMessage(message.subarray(4, 4 + message.readUIntBE(1, 3)));
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
