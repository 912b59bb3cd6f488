import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { openGeneration } from './ca-generation.ts';

it('an authority of the operator that peers would refuse is refused at the start, with its file', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-ca-'));
  try {
    const root = ['req', '-x509', '-nodes', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-days', '30', '-subj', '/CN=root'];
    const files = ['-keyout', 'root-key.pem', '-out', 'root-cert.pem'];
    execFileSync('openssl', [...root, '-addext', 'nameConstraints=permitted;URI:*.local', ...files], { cwd: folder, stdio: 'ignore' });
    await assert.rejects(
      openGeneration(folder, 'own', 'cluster.local', Date.now()),
      (error: Error) =>
        /root-cert\.pem/.test((error as { place?: string }).place ?? '') && /the URI name constraint "\*\.local", which is malformed/.test(error.message),
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
