import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Logger } from '@mizzen/common';
import { startControlPlane } from '@mizzen/control';
import { startProxy } from '@mizzen/proxy';
import { until } from './support/http.ts';
import { TestMesh } from './support/mesh.ts';

describe('a control plane whose authority was replaced', () => {
  let mesh: TestMesh;
  before(async () => {
    mesh = await TestMesh.start();
  });
  after(() => mesh.close());

  it('reports proxies of the authority before it, and the proxies report why they are refused', async () => {
    const lines: string[] = [];
    const { config, proxy: first } = await mesh.proxy('web');
    await first.ready;
    await first.close();
    const proxy = await startProxy(config, new Logger('proxy', 'info', (line) => lines.push(line)), {});
    mesh.onClose(() => proxy.close());
    await proxy.ready;
    const { xdsPort } = mesh.plane;
    await mesh.plane.close();
    rmSync(join(mesh.home, 'ca'), { recursive: true });
    const warnings: string[] = [];
    const logger = new Logger('control', 'warn', (line) => warnings.push(line));
    mesh.plane = await startControlPlane({ home: mesh.home, apiPort: 0, xdsPort, logger });
    await until(
      'both sides say so',
      async () => [...warnings, ...lines],
      () =>
        [warnings, lines].every((log) =>
          log.some((line) =>
            /spiffe:\/\/cluster\.local\/ns\/default\/sa\/web was issued by another authority of the same trust domain cluster\.local/.test(line),
          ),
        ),
    );
    assert.ok(!lines.some((line) => /revoked/.test(line)));
  });
});
