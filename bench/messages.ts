import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { silentLogger } from '@mizzen/common';
import { EmbeddedDriver } from '@mizzen/message/brokers/embedded';
import { defaultLogSettings, PartitionLog } from '@mizzen/message/log/partition-log';
import { encodeRecord } from '@mizzen/message/log/record';
import { mizzenCommand } from '../packages/cli/runner/program.ts';
import { commandOptions } from '../scripts/options.ts';
import { cpuTicks, measure, rssMb, ticksPerSecond } from './measure.ts';
import { Processes } from './processes.ts';

/**
 * `npm run bench:messages [-- --seconds N] [-- --case publish,bulk,delivery,latency,stored]`: the embedded broker with group commit, through the local HTTP API
 * of a sidecar. Rates are per core: messages for each second of CPU that sidecar and broker have spent together.
 */
const {
  seconds,
  stored,
  case: cases,
} = commandOptions({ numbers: { seconds: 5, stored: 10_000_000 }, lists: { case: ['publish', 'bulk', 'delivery', 'latency', 'stored'] } });
const loadCpu = cpus().length > 1 ? 1 : 0;
const folder = mkdtempSync(join(tmpdir(), 'mizzen-bench-messages-'));
const processes = new Processes();
let ports = { broker: 21_201, http: 21_202, grpc: 21_203, app: 21_204, consumerHttp: 21_205, consumerGrpc: 21_206, filled: 21_207 };
const body = JSON.stringify({ text: 'x'.repeat(1_000), n: 1 });
const node = process.execPath;
const script = join(import.meta.dirname, 'message-sidecar.ts');

function wrkScript(name: string, path: string, content: string): string {
  const file = join(folder, `${name}.lua`);
  writeFileSync(file, `wrk.method = "POST"\nwrk.path = "${path}"\nwrk.body = [==[${content}]==]\nwrk.headers["content-type"] = "application/json"\n`);
  return file;
}

async function main(): Promise<void> {
  const [broker, publisher] = await startBoth(0);
  const url = `http://127.0.0.1:${ports.http}/`;
  if (cases.has('publish')) {
    const load = { url, host: '127.0.0.1', connections: 64, seconds, script: wrkScript('publish', '/v1.0/publish/pubsub/p', body) };
    const m = await measure([publisher, broker], load, loadCpu);
    console.log(
      `single publishes of 1 KiB by HTTP: ${(1e6 / m.cpuUsPerRequest).toFixed(0)} per second and core (aim: 15000); ${m.requestsPerSecond.toFixed(0)}/s, p50 ${m.p50Ms} ms, p99 ${m.p99Ms} ms, errors ${m.errors}`,
    );
  }
  if (cases.has('bulk')) {
    const entries = Array.from({ length: 100 }, (_, i) => ({ entryId: String(i), event: JSON.parse(body) as object, contentType: 'application/json' }));
    const load = { url, host: '127.0.0.1', connections: 8, seconds, script: wrkScript('bulk', '/v1.0/publish/bulk/pubsub/b', JSON.stringify(entries)) };
    const m = await measure([publisher, broker], load, loadCpu);
    console.log(
      `in bulk of 100: ${(1e8 / m.cpuUsPerRequest).toFixed(0)} per second and core (aim: 60000); ${(m.requestsPerSecond * 100).toFixed(0)}/s, errors ${m.errors}`,
    );
  }
  if (cases.has('delivery')) await consume(broker, publisher, 'delivery', 0);
  for (const pid of [broker, publisher]) await processes.end(pid);
  if (cases.has('latency')) {
    // For rates per core they share one; here they have what there is, as they would.
    ports = Object.fromEntries(Object.entries(ports).map(([name, port]) => [name, port + 20])) as typeof ports;
    const [other, otherPublisher] = await startBoth('0-1');
    await consume(other, otherPublisher, 'latency', '0-1');
  }
  if (cases.has('stored')) await startWithStored();
}

async function startBoth(cpu: number | string): Promise<readonly [broker: number, publisher: number]> {
  const data = join(folder, `broker-${cpu}`);
  const broker = await processes.start(
    cpu,
    [...mizzenCommand, 'broker', '--plain', '--data', data, '--port', String(ports.broker), '--log-level', 'error'],
    ports.broker,
  );
  const publisher = await processes.start(
    cpu,
    [node, '--single-threaded-gc', script, String(ports.broker), String(ports.http), String(ports.grpc)],
    ports.http,
  );
  return [broker, publisher];
}

async function consume(broker: number, publisher: number, what: 'delivery' | 'latency', cpu: number | string): Promise<void> {
  const latencies: number[] = [];
  let received = 0;
  // Consumer and generator are bare sockets: what is measured shall not be them.
  const app = net.createServer({ noDelay: true }, (socket) => {
    let held = Buffer.alloc(0);
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      held = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
      for (;;) {
        const end = held.indexOf('\r\n\r\n');
        if (end < 0) return;
        const head = held.toString('latin1', 0, end);
        const length = Number(/content-length: (\d+)/i.exec(head)?.[1] ?? 0);
        if (held.length < end + 4 + length) return;
        const content = held.toString('latin1', end + 4, end + 4 + length);
        held = held.subarray(end + 4 + length);
        if (head.startsWith('GET')) {
          socket.write('HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]');
          continue;
        }
        received++;
        const at = content.indexOf('"sentAt":');
        if (at >= 0) latencies.push(performance.timeOrigin + performance.now() - Number.parseFloat(content.slice(at + 9, at + 30)));
        socket.write('HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n');
      }
    });
  });
  await new Promise<void>((resolve) => app.listen(ports.app, '127.0.0.1', () => resolve()));
  const driver = new EmbeddedDriver({ host: '127.0.0.1', port: ports.broker, logger: silentLogger });
  const total = what === 'delivery' ? 100_000 : 0;
  const message = { key: '', headers: {}, body: Buffer.from(`{"specversion":"1.0","id":"1","source":"b","type":"t","data":${body}}`), delayMs: 0, ttlMs: 0 };
  for (let n = 0; n < total; n += 1_000)
    await driver.publish(
      't',
      Array.from({ length: 1_000 }, () => message),
    );
  const consumer = await processes.start(
    cpu,
    [node, '--single-threaded-gc', script, String(ports.broker), String(ports.consumerHttp), String(ports.consumerGrpc), String(ports.app)],
    ports.consumerHttp,
  );
  const settle = async (count: number) => {
    const deadline = Date.now() + 120_000;
    while (received < count && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  if (total > 0) {
    await settle(total / 4);
    const from = received;
    const before = cpuTicks(consumer) + cpuTicks(broker);
    const startedAt = Date.now();
    await settle(total);
    const spent = (cpuTicks(consumer) + cpuTicks(broker) - before) / ticksPerSecond;
    console.log(
      `delivery to an HTTP consumer: ${((received - from) / spent).toFixed(0)} per second and core (aim: 12000); ${(((received - from) * 1000) / (Date.now() - startedAt)).toFixed(0)}/s`,
    );
  }
  if (what === 'latency') {
    const rate = 5_000;
    const everyMs = 1;
    // Until the compilers are done.
    const warmUpSeconds = 3;
    const toSend = rate * (warmUpSeconds + seconds);
    const sockets = Array.from({ length: 32 }, () => net.connect({ port: ports.http, host: '127.0.0.1', noDelay: true }));
    await Promise.all(sockets.map((socket) => once(socket, 'connect')));
    const free = [...sockets];
    const waiting: string[] = [];
    for (const socket of sockets)
      socket.on('data', () => {
        const next = waiting.shift();
        if (next === undefined) free.push(socket);
        else socket.write(next);
      });
    const padding = 'x'.repeat(950);
    const send = () => {
      const content = `{"sentAt":${performance.timeOrigin + performance.now()},"text":"${padding}"}`;
      const text = `POST /v1.0/publish/pubsub/t HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${content.length}\r\n\r\n${content}`;
      const socket = free.pop();
      if (socket === undefined) waiting.push(text);
      else socket.write(text);
    };
    const pids = { broker, publisher, consumer, 'generator and application': process.pid };
    const ticksBefore = Object.values(pids).map(cpuTicks);
    const startedAt = performance.now();
    let sent = 0;
    latencies.length = 0;
    await new Promise<void>((resolve) => {
      const timer = setInterval(() => {
        const due = Math.min(toSend, ((performance.now() - startedAt) / 1000) * rate);
        while (sent < due) {
          sent++;
          send();
        }
        if (sent >= toSend) {
          clearInterval(timer);
          resolve();
        }
      }, everyMs);
    });
    const wanted = latencies.length;
    const deadline = Date.now() + 10_000;
    while (latencies.length < sent && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 10));
    const elapsed = (performance.now() - startedAt) / 1000;
    const shares = Object.entries(pids).map(
      ([name, pid], i) => `${name} ${(((cpuTicks(pid) - ticksBefore[i]!) / ticksPerSecond / elapsed) * 100).toFixed(0)} %`,
    );
    const sorted = latencies.slice(rate * warmUpSeconds).sort((a, b) => a - b);
    const at = (share: number) => sorted[Math.floor(sorted.length * share)]?.toFixed(2);
    console.log(
      `end to end at ${rate}/s after ${warmUpSeconds} s: p50 ${at(0.5)} ms (aim: 3), p99 ${at(0.99)} ms (aim: 15); ${latencies.length} of ${sent} arrived (${wanted} by the end of sending). Of a core: ${shares.join(', ')}.`,
    );
    for (const socket of sockets) socket.destroy();
  }
  await driver.close();
  await processes.end(consumer);
  app.close();
}

async function startWithStored(): Promise<void> {
  const data = join(folder, 'filled');
  const topic = join(data, 'topics', 'filled');
  mkdirSync(topic, { recursive: true });
  writeFileSync(join(topic, 'topic.json'), JSON.stringify({ partitions: 4 }));
  const record = () => encodeRecord({ key: '', headers: '{}', body: Buffer.alloc(100, 120), deliverAtMs: 0 });
  for (let partition = 0; partition < 4; partition++) {
    const log = new PartitionLog(join(topic, String(partition)), { ...defaultLogSettings, syncs: false }, () => {});
    for (let n = 0; n < stored / 4; n += 10_000) await new Promise<void>((resolve) => log.append(Array.from({ length: 10_000 }, record), () => resolve()));
    await log.close();
  }
  const startedAt = performance.now();
  const pid = await processes.start(
    0,
    [...mizzenCommand, 'broker', '--plain', '--data', data, '--port', String(ports.filled), '--log-level', 'error'],
    ports.filled,
  );
  const ms = performance.now() - startedAt;
  await new Promise((resolve) => setTimeout(resolve, 1_000));
  console.log(`${stored} stored messages: started in ${ms.toFixed(0)} ms (aim: 1000), RSS ${rssMb(pid).toFixed(0)} MB (aim: 150)`);
}

try {
  await main();
} finally {
  await processes.close();
  rmSync(folder, { recursive: true, force: true });
}
