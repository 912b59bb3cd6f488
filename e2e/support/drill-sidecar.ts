/**
 * A sidecar as a process of its own: `drill-sidecar.ts CONFIG [LIVENESS]`, both JSON. Unlike `mizzen proxy` it installs no last boundary for
 * errors, so that an unhandled one ends it, and the liveness limits of the control connection can be shorter than the defaults.
 */
import { enableCompileCache } from 'node:module';
import type { LivenessOptions } from '@mizzen/common/grpc-client';
import type { ProxyConfig } from '@mizzen/proxy';

enableCompileCache();
const [{ Logger }, { startProxy }] = await Promise.all([import('@mizzen/common'), import('@mizzen/proxy')]);
const [config, liveness] = process.argv.slice(2).map((text) => JSON.parse(text) as unknown);
const startedAt = performance.now();
const proxy = await startProxy(config as ProxyConfig, new Logger('proxy', 'info'), {
  logLevel: 'info',
  controlLiveness: liveness as LivenessOptions | undefined,
});
process.once('disconnect', () => process.exit(0));
await proxy.ready;
process.send?.({ kind: 'ready', afterMs: performance.now() - startedAt });
