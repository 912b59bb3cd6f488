import { createRequire } from 'node:module';
import net from 'node:net';
import { MizzenError, messageOf } from '@mizzen/common';

/**
 * Where a connection was going before the kernel redirected it to us: netfilter's SO_ORIGINAL_DST (linux/netfilter_ipv4.h, and
 * linux/netfilter_ipv6/ip6_tables.h for IPv6). Node has no call for it, so this one system call goes through koffi; it takes a
 * microsecond, once per connection. Everything that knows of koffi, or of a socket's descriptor, is in this file.
 */
export interface OriginalDestination {
  readonly address: string;
  readonly port: number;
}

type GetSocketOption = (descriptor: number, level: number, option: number, value: Buffer, length: Uint32Array) => number;

const levelOfIPv4 = 0; // SOL_IP
const levelOfIPv6 = 41; // SOL_IPV6
const originalDestinationOption = 80; // SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST
const sockaddrBytes = 28; // sizeof(struct sockaddr_in6)

let getSocketOption: GetSocketOption | undefined;
const sockaddr = Buffer.alloc(sockaddrBytes);
const length = new Uint32Array(1);

/** Makes ready to read original destinations. Throws `no-original-destination` where that cannot be done; idempotent. */
export function prepareOriginalDestination(): void {
  if (getSocketOption !== undefined) return;
  if (process.platform !== 'linux')
    throw new MizzenError('no-original-destination', `captured connections need Linux (this is ${process.platform}). Use explicit capture: HTTP_PROXY.`);
  try {
    const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi');
    getSocketOption = koffi.load(null).func('int getsockopt(int, int, int, void *, void *)') as unknown as GetSocketOption;
  } catch (error) {
    throw new MizzenError(
      'no-original-destination',
      `captured connections need the npm package koffi, which cannot be loaded here (${messageOf(error)}). Install it with its optional dependencies, or use explicit capture: HTTP_PROXY.`,
    );
  }
}

/** undefined: the connection came to the socket's own address, or nothing can be known of it. */
export function originalDestinationOf(socket: net.Socket): OriginalDestination | undefined {
  const descriptor = (socket as unknown as { readonly _handle?: { readonly fd?: number } })._handle?.fd;
  if (getSocketOption === undefined || descriptor === undefined || descriptor < 0) return undefined;
  const isIPv6 = socket.remoteFamily === 'IPv6';
  length[0] = sockaddrBytes;
  if (getSocketOption(descriptor, isIPv6 ? levelOfIPv6 : levelOfIPv4, originalDestinationOption, sockaddr, length) !== 0) return undefined;
  const port = sockaddr.readUInt16BE(2);
  const address = isIPv6 ? ipv6Text(sockaddr.subarray(8, 24)) : `${sockaddr[4]}.${sockaddr[5]}.${sockaddr[6]}.${sockaddr[7]}`;
  return port === socket.localPort && address === socket.localAddress ? undefined : { address, port };
}

/** In the form in which Node writes addresses (RFC 5952), so that they can be compared as text. */
function ipv6Text(bytes: Buffer): string {
  const groups: string[] = [];
  for (let at = 0; at < 16; at += 2) groups.push(bytes.readUInt16BE(at).toString(16));
  return new net.SocketAddress({ address: groups.join(':'), family: 'ipv6' }).address;
}
