import type { Logger } from '@mizzen/common';
import { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { DnsServer } from './dns-server.ts';
import { followedServers } from './resolver-config.ts';

/** A DNS server that knows nothing itself and asks the machine's own servers: for those who cannot reach them. */
export interface DnsRelay {
  close(): Promise<void>;
}

/** `localDomains` are not asked of anybody: what is below them does not exist. */
export async function startDnsRelay(options: {
  readonly address: string;
  readonly port: number;
  readonly localDomains: readonly string[];
  readonly logger: Logger;
}): Promise<DnsRelay> {
  const { address, port, localDomains, logger } = options;
  const server = new DnsServer({ port, addresses: [address], upstreamServers: followedServers(), localDomains, counters: new ProxyCounters(), logger });
  await server.listen();
  return server;
}
