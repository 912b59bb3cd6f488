import net from 'node:net';

/**
 * HAProxy's PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): reading the header that a balancer in front of us puts
 * before a connection's bytes, and writing the one that we put before ours.
 */
export interface ProxyHeader {
  readonly version: 1 | 2;
  /** undefined for UNKNOWN and LOCAL: the connection is the balancer's own (a health check), its addresses stand. */
  readonly addresses: ProxyAddresses | undefined;
  /** Bytes of the header. */
  readonly length: number;
}

export interface ProxyAddresses {
  readonly sourceAddress: string;
  readonly sourcePort: number;
  readonly destinationAddress: string;
  readonly destinationPort: number;
}

/** Section 2.1: a version 1 line has at most 107 bytes, CRLF included. */
const maxLineBytes = 107;
/** More than addresses and the TLVs that balancers send; a length field could ask for 64 KiB. */
const maxVersion2Bytes = 4096;
const signature = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1');

/** `none`: no PROXY header begins here; `invalid`: one begins and breaks the rules. */
export function readProxyHeader(bytes: Buffer): ProxyHeader | 'incomplete' | 'none' | 'invalid' {
  if (bytes.length === 0) return 'incomplete';
  if (bytes[0] === signature[0]) {
    const known = Math.min(bytes.length, signature.length);
    if (bytes.compare(signature, 0, known, 0, known) !== 0) return 'none';
    return bytes.length < 16 ? 'incomplete' : readVersion2(bytes);
  }
  const start = bytes.toString('latin1', 0, 6);
  if (!'PROXY '.startsWith(start)) return 'none';
  const end = bytes.indexOf('\r\n');
  if (end >= 0 && end + 2 <= maxLineBytes) return readVersion1(bytes.toString('latin1', 0, end));
  return bytes.length >= maxLineBytes || end >= 0 ? 'invalid' : 'incomplete';
}

function readVersion1(line: string): ProxyHeader | 'invalid' {
  const length = line.length + 2;
  if (line === 'PROXY UNKNOWN' || line.startsWith('PROXY UNKNOWN ')) return { version: 1, addresses: undefined, length };
  const match = /^PROXY (TCP4|TCP6) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})$/.exec(line);
  if (!match) return 'invalid';
  const [, family, sourceAddress, destinationAddress, sourcePort, destinationPort] = match as unknown as [string, string, string, string, string, string];
  const wanted = family === 'TCP4' ? 4 : 6;
  if (net.isIP(sourceAddress) !== wanted || net.isIP(destinationAddress) !== wanted || Number(sourcePort) > 65_535 || Number(destinationPort) > 65_535)
    return 'invalid';
  return {
    version: 1,
    addresses: { sourceAddress, sourcePort: Number(sourcePort), destinationAddress, destinationPort: Number(destinationPort) },
    length,
  };
}

function readVersion2(bytes: Buffer): ProxyHeader | 'incomplete' | 'invalid' {
  const versionAndCommand = bytes[12]!;
  const command = versionAndCommand & 0x0f;
  if (versionAndCommand >> 4 !== 2 || command > 1) return 'invalid';
  const bodyLength = bytes.readUInt16BE(14);
  const length = 16 + bodyLength;
  if (length > maxVersion2Bytes) return 'invalid';
  if (bytes.length < length) return 'incomplete';
  const family = bytes[13]! >> 4;
  const transport = bytes[13]! & 0x0f;
  if (family > 3 || transport > 2) return 'invalid';
  // LOCAL, and families that name no IP address: the receiver uses the real connection's endpoints (section 2.2).
  if (command === 0 || family === 0 || family === 3) return { version: 2, addresses: undefined, length };
  const size = family === 1 ? 4 : 16;
  if (bodyLength < 2 * size + 4) return 'invalid';
  const address = (at: number) => (family === 1 ? [...bytes.subarray(at, at + 4)].join('.') : textOfIpv6(bytes.subarray(at, at + 16)));
  return {
    version: 2,
    addresses: {
      sourceAddress: address(16),
      destinationAddress: address(16 + size),
      sourcePort: bytes.readUInt16BE(16 + 2 * size),
      destinationPort: bytes.readUInt16BE(18 + 2 * size),
    },
    length,
  };
}

/** The header for a connection of these addresses. Addresses of two families become UNKNOWN and LOCAL, which every receiver must take. */
export function writeProxyHeader(version: 1 | 2, addresses: ProxyAddresses): Buffer {
  const source = unmapped(addresses.sourceAddress);
  const destination = unmapped(addresses.destinationAddress);
  const family = net.isIP(source);
  const isKnown = family !== 0 && family === net.isIP(destination);
  if (version === 1)
    return Buffer.from(
      isKnown ? `PROXY TCP${family} ${source} ${destination} ${addresses.sourcePort} ${addresses.destinationPort}\r\n` : 'PROXY UNKNOWN\r\n',
      'latin1',
    );
  if (!isKnown) return Buffer.concat([signature, Buffer.from([0x20, 0x00, 0, 0])]);
  const size = family === 4 ? 4 : 16;
  const body = Buffer.alloc(2 * size + 4);
  bytesOf(source).copy(body, 0);
  bytesOf(destination).copy(body, size);
  body.writeUInt16BE(addresses.sourcePort, 2 * size);
  body.writeUInt16BE(addresses.destinationPort, 2 * size + 2);
  return Buffer.concat([signature, Buffer.from([0x21, family === 4 ? 0x11 : 0x21, body.length >> 8, body.length & 0xff]), body]);
}

/** An IPv4 address that a dual-stack socket shows as `::ffff:10.0.0.1`. */
function unmapped(address: string): string {
  return /^::ffff:\d+\.\d+\.\d+\.\d+$/i.test(address) ? address.slice(7) : address;
}

function bytesOf(address: string): Buffer {
  if (net.isIPv4(address)) return Buffer.from(address.split('.').map(Number));
  const withoutZone = address.split('%')[0]!;
  const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(withoutZone);
  const text = dotted
    ? `${dotted[1]}${((Number(dotted[2]) << 8) | Number(dotted[3])).toString(16)}:${((Number(dotted[4]) << 8) | Number(dotted[5])).toString(16)}`
    : withoutZone;
  const [left = '', right] = text.split('::');
  const groups = (part: string | undefined) => (part ? part.split(':').map((group) => Number.parseInt(group, 16)) : []);
  const before = groups(left);
  const after = groups(right);
  const all = right === undefined ? before : [...before, ...Array<number>(8 - before.length - after.length).fill(0), ...after];
  const bytes = Buffer.alloc(16);
  for (const [i, group] of all.entries()) bytes.writeUInt16BE(group, i * 2);
  return bytes;
}

function textOfIpv6(bytes: Buffer): string {
  const groups = Array.from({ length: 8 }, (_, i) => bytes.readUInt16BE(i * 2).toString(16)).join(':');
  return new net.SocketAddress({ address: groups, family: 'ipv6' }).address;
}
