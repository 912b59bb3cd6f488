import type net from 'node:net';
import type { Cluster } from '../upstream/cluster.ts';

/** Carries bytes between a connection and an endpoint of a cluster, with backpressure and half-close in both directions. */
export function proxyTcp(downstream: net.Socket, first: Buffer | undefined, cluster: Cluster | undefined): void {
  const endpoint = cluster?.pick(undefined);
  if (cluster === undefined || endpoint === undefined || endpoint.transport.notReadyReason !== undefined) return void downstream.destroy();
  const upstream = endpoint.transport.connect(endpoint.address, endpoint.port);
  cluster.counters.upstreamCxTotal++;
  const timer = setTimeout(() => upstream.destroy(), cluster.settings.connectTimeoutMs);
  const join = (from: net.Socket, to: net.Socket) => {
    from.on('data', (chunk) => {
      if (!to.write(chunk)) from.pause();
    });
    to.on('drain', () => from.resume());
    from.on('end', () => to.end());
    from.on('error', () => from.destroy());
    from.on('close', () => to.destroySoon());
  };
  downstream.pause();
  upstream.once(endpoint.transport.readyEvent, () => {
    clearTimeout(timer);
    if (first !== undefined) upstream.write(first);
    join(downstream, upstream);
    join(upstream, downstream);
    downstream.resume();
  });
  upstream.once('error', () => {
    clearTimeout(timer);
    cluster.counters.upstreamCxConnectFail++;
    downstream.destroy();
  });
  downstream.once('close', () => upstream.destroySoon());
}
