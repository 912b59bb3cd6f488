import net from 'node:net';
import { MizzenError } from '@mizzen/common';
import { IpAccessPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import type { FilterKind } from './filter.ts';
import { unpackConfig } from './unpack-config.ts';

const name = 'mizzen.filters.http.ip_access';

interface IpAccess {
  /** undefined: everybody who is not denied. */
  readonly allowed: net.BlockList | undefined;
  readonly denied: net.BlockList | undefined;
}

/**
 * mizzen.filters.http.ip_access: lets requests in by the address that they come from: the peer's, or the one that a PROXY protocol header of a
 * trusted balancer named. What a client writes into x-forwarded-for has no say in it.
 */
export const ipAccess: FilterKind = {
  name,
  create: (_any, _place, { counters }) => ({
    name,
    onRequest(exchange) {
      const config = exchange.filterConfig(name) as IpAccess | undefined;
      if (config === undefined) return 'continue';
      const address = plainAddress(exchange.remoteAddress);
      const family = net.isIPv6(address) ? 'ipv6' : 'ipv4';
      if (config.denied?.check(address, family) !== true && config.allowed?.check(address, family) !== false) return 'continue';
      counters.countRejection('ip_access', 'not_allowed');
      exchange.replyProblem(403, { title: 'Forbidden', detail: 'this API cannot be called from your address' }, 'ip_access_denied');
      return 'stop';
    },
  }),
  compileRoute(any, place): IpAccess {
    const { allow, deny } = unpackConfig(IpAccessPerRouteSchema, any, place);
    return { allowed: allow.length > 0 ? blockList(allow, place) : undefined, denied: deny.length > 0 ? blockList(deny, place) : undefined };
  },
};

/** An IPv4 address that came in on an IPv6 socket is the IPv4 address that it is. */
function plainAddress(address: string): string {
  return address.startsWith('::ffff:') && address.includes('.') ? address.slice(7) : address;
}

function blockList(ranges: readonly string[], place: string): net.BlockList {
  const list = new net.BlockList();
  for (const range of ranges) {
    const [address = '', length] = range.split('/');
    const version = net.isIP(address);
    const bits = length === undefined ? (version === 6 ? 128 : 32) : Number(length);
    if (version === 0 || !Number.isInteger(bits) || bits < 0 || bits > (version === 6 ? 128 : 32) || length === '')
      throw new MizzenError('invalid-filter', `${place}: ${JSON.stringify(range)} is no address and no range of addresses (10.0.0.0/8)`);
    list.addSubnet(address, bits, version === 6 ? 'ipv6' : 'ipv4');
  }
  return list;
}
