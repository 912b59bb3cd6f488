import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import net from 'node:net';
import { after, describe, it } from 'node:test';
import { cluster, http as httpFilter, listener, TestEngine, tcp } from './support/engine.ts';

/** Size of a body; `MIZZEN_BODY_GIB=10` for the full proof. */
const totalBytes = Number(process.env['MIZZEN_BODY_GIB'] ?? 1) * 1024 ** 3;
const growthLimitBytes = 32 * 1024 ** 2;
const block = Buffer.alloc(64 * 1024, 'b');

const rss = (pid: number) => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024;

/** Writes `bytes` as fast as the socket takes them. */
async function pour(socket: net.Socket, bytes: number, frame: (data: Buffer) => Buffer = (data) => data): Promise<void> {
  for (let left = bytes; left > 0; left -= block.length)
    if (!socket.write(frame(left >= block.length ? block : block.subarray(0, left)))) await once(socket, 'drain');
}

/** Reads what comes, in bursts with pauses between them: a reader that is always behind. */
function sip(socket: net.Socket, onBytes: (count: number) => void): void {
  let burst = 0;
  socket.on('data', (chunk: Buffer) => {
    onBytes(chunk.length);
    burst += chunk.length;
    if (burst < 8 * 1024 ** 2) return;
    burst = 0;
    socket.pause();
    setTimeout(() => socket.resume(), 4);
  });
}

describe('memory with large bodies and slow readers', () => {
  const engine = new TestEngine();
  after(() => engine.close());

  /** Watches a process while something happens; returns by how much its memory grew at most. */
  const growth = async (pid: number, action: () => Promise<void>) => {
    const before = rss(pid);
    let peak = before;
    const timer = setInterval(() => (peak = Math.max(peak, rss(pid))), 20);
    await action();
    clearInterval(timer);
    return peak - before;
  };

  const cases: readonly (readonly [string, 'download' | 'upload' | 'tcp', (port: number) => Promise<void>])[] = [
    [
      'a response',
      'download',
      async (port) => {
        const client = net.connect({ port, host: '127.0.0.1' });
        client.write('GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n');
        let received = 0;
        sip(client, (count) => (received += count));
        await once(client, 'close');
        assert.ok(received > totalBytes, `${received}`);
      },
    ],
    [
      'a request in chunks',
      'upload',
      async (port) => {
        const client = net.connect({ port, host: '127.0.0.1' });
        let answer = '';
        client.on('data', (chunk: Buffer) => (answer += chunk));
        client.write('POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n');
        await pour(client, totalBytes, (data) => Buffer.concat([Buffer.from(`${data.length.toString(16)}\r\n`), data, Buffer.from('\r\n')]));
        client.write('0\r\n\r\n');
        await once(client, 'close');
        assert.match(answer, /^HTTP\/1\.1 200 /);
      },
    ],
    [
      'a TCP session',
      'tcp',
      async (port) => {
        const client = net.connect({ port, host: '127.0.0.1' });
        client.write('go');
        let received = 0;
        sip(client, (count) => (received += count));
        await once(client, 'close');
        assert.equal(received, totalBytes);
      },
    ],
  ];
  for (const [name, kind, act] of cases)
    it(`stays within 32 MiB for ${name} of ${totalBytes / 1024 ** 3} GiB`, async () => {
      const origin = await engine.server((socket) => {
        if (kind === 'tcp') return void socket.once('data', () => void pour(socket, totalBytes).then(() => socket.end()));
        if (kind === 'download') {
          socket.once('data', () => {
            socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${totalBytes}\r\n\r\n`);
            void pour(socket, totalBytes);
          });
          return;
        }
        let tail = '';
        socket.on('data', (chunk: Buffer) => {
          tail = (tail + chunk.subarray(-16).toString('latin1')).slice(-16);
          if (tail.endsWith('\r\n0\r\n\r\n')) socket.write('HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n');
        });
        sip(socket, () => {});
      });
      const [port, adminPort] = [await engine.ports.next(), await engine.ports.next()];
      const child = await engine.spawn({
        listeners: [listener('in', port, kind === 'tcp' ? tcp('origin') : httpFilter('origin'))],
        clusters: [cluster('origin', [origin])],
        adminPort,
      });
      // The first look at the metrics loads what is needed for it; start-up leaves its garbage behind.
      await engine.metrics(adminPort);
      const grown = await growth(child.pid!, () => act(port));
      assert.ok(grown < growthLimitBytes, `memory grew by ${(grown / 1024 ** 2).toFixed(1)} MiB`);
      console.log(`# ${name}: memory grew by ${(grown / 1024 ** 2).toFixed(1)} MiB`);
    });
});
