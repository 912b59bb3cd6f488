import { PortAllocator } from '../../packages/cli/runner/port-allocator.ts';

const firstPort = 16_000;
/** `scripts/test.mjs` runs two files at a time. */
const workers = 2;
const portsPerWorker = 2_000;

/**
 * The ports of this test file. Files that run at the same time have ranges of their own, below those of `mizzen up` and `mizzen run`: a server that
 * a test stops finds its port free when it starts again.
 */
export const testPorts = new PortAllocator(start() + Math.floor(Math.random() * (portsPerWorker / 2)), start() + portsPerWorker);

function start(): number {
  return firstPort + ((Number(process.env['NODE_TEST_WORKER_ID'] ?? 1) - 1) % workers) * portsPerWorker;
}
