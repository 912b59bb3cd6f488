/**
 * A sidecar as a process of its own: `drill-sidecar.ts CONFIG [LIVENESS]`, both JSON. Unlike `mizzen proxy` it installs no last boundary for
 * errors, so that an unhandled one ends it, and the liveness limits of the control connection can be shorter than the defaults.
 */
import { readFileSync } from 'node:fs';
import { enableCompileCache } from 'node:module';
import type { LivenessOptions } from '@mizzen/common/grpc-client';
import type { ProxyConfig } from '@mizzen/proxy';

enableCompileCache();
const [{ Logger }, { startProxy }] = await Promise.all([import('@mizzen/common'), import('@mizzen/proxy')]);
const [config, liveness] = process.argv.slice(2).map((text) => JSON.parse(text) as unknown);
const waitedBeforeMs = waitedForCpuMs();
const startedAt = performance.now();
const proxy = await startProxy(config as ProxyConfig, new Logger('proxy', 'info'), {
  logLevel: 'info',
  controlLiveness: liveness as LivenessOptions | undefined,
});
process.once('disconnect', () => process.exit(0));
await proxy.ready;
const readyAt = performance.now();
const waitedMs = waitedForCpuMs();
process.send?.({ kind: 'ready', afterMs: readyAt - waitedMs, servingMs: readyAt - startedAt - (waitedMs - waitedBeforeMs) });

/** How long this process was ready to run while others had the CPU: without it, what a start takes does not depend on their load. */
function waitedForCpuMs(): number {
  return Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'utf8').split(' ')[1]) / 1e6;
}
