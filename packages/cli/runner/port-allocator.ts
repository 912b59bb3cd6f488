import { once } from 'node:events';
import net from 'node:net';
import { errorBoundary, MizzenError } from '@mizzen/common';

const boundary = errorBoundary('runner');

/**
 * Hands out loopback ports below the range from which the kernel takes source ports, so that a port stays free for a process that
 * restarts. A port is given once in the life of this allocator.
 */
export class PortAllocator {
  #next: number;
  readonly #end: number;

  constructor(start = 20_000 + Math.floor(Math.random() * 8_000), end = 32_000) {
    this.#next = start;
    this.#end = end;
  }

  async next(): Promise<number> {
    while (this.#next < this.#end) {
      const port = this.#next++;
      if (await isFree(port)) return port;
    }
    throw new MizzenError('no-free-port', 'no free port was found between 20000 and 32000 on 127.0.0.1');
  }
}

export async function isFree(port: number, host = '127.0.0.1'): Promise<boolean> {
  const server = boundary.own(net.createServer());
  server.listen({ port, host, exclusive: true });
  try {
    await once(server, 'listening');
  } catch {
    return false;
  }
  server.close();
  await once(server, 'close');
  return true;
}
