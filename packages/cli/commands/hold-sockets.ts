import dgram from 'node:dgram';
import { once } from 'node:events';
import net from 'node:net';
import { errorBoundary } from '@mizzen/common';
import type { SocketMessage } from '../runner/own-namespace.ts';

const boundary = errorBoundary('command');

/** Runs inside a network namespace: opens the sockets to which its traffic is redirected, hands them to the parent process, and ends. */
export async function holdSockets(outboundPort: number, dnsPort: number): Promise<void> {
  // The parent's end of the channel is what this process lives by.
  process.channel?.ref();
  const send = (message: SocketMessage, handle?: net.Server | dgram.Socket) =>
    new Promise<void>((resolve, reject) => process.send!(message, handle, { keepOpen: true }, (error: Error | null) => (error ? reject(error) : resolve())));
  for (const host of ['127.0.0.1', '::1']) {
    try {
      const isIPv6 = net.isIPv6(host);
      // The cable carries IPv4; a resolver may be at either loopback address.
      const wanted = [...(isIPv6 ? [] : [['outbound', outboundPort] as const]), ...(dnsPort > 0 ? [['dnsTcp', dnsPort] as const] : [])];
      for (const [kind, port] of wanted) {
        const server = boundary.own(net.createServer());
        server.listen({ port, host });
        await once(server, 'listening');
        await send({ kind }, server);
        server.close();
      }
      if (dnsPort === 0) continue;
      const socket = boundary.own(dgram.createSocket(isIPv6 ? 'udp6' : 'udp4'));
      socket.bind(dnsPort, host);
      await once(socket, 'listening');
      await send({ kind: 'dnsUdp' }, socket);
      socket.close();
    } catch (error) {
      if (host === '127.0.0.1') throw error; // a kernel without IPv6 has the other one only
    }
  }
  await send({ kind: 'all' });
}
