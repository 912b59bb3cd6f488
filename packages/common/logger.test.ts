import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, mkdtempSync, openSync, rmSync } from 'node:fs';
import http from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';

/** A server that logs 20 kB for each request and returns the number of lines that standard error did not take. */
const server = `
import http from 'node:http';
import { Logger, lostLogLines } from '${import.meta.resolve('./index.ts')}';
const logger = new Logger('test');
const app = http.createServer((_request, response) => {
  logger.info('x'.repeat(20_000));
  setImmediate(() => response.end(String(lostLogLines())));
});
app.listen(0, '127.0.0.1', () => process.stdout.write(app.address().port + '\\n'));
`;
const requests = 150;

describe('standard error that takes no log lines', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-log-'));
  const pipe = join(folder, 'pipe');
  execFileSync('mkfifo', [pipe]);
  // A reader that never reads.
  const reader = openSync(pipe, constants.O_RDWR);
  after(() => {
    closeSync(reader);
    rmSync(folder, { recursive: true, force: true });
  });

  for (const [name, redirection] of [
    ['a closed descriptor', '2>&-'],
    ['a full disk', '2>/dev/full'],
    ['a pipe that is not read', `2>${pipe}`],
  ] as const)
    it(`costs log lines and leaves the process serving: ${name}`, async () => {
      const child = spawn('sh', ['-c', `exec "$0" --input-type=module -e "$1" ${redirection}`, process.execPath, server], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      try {
        const [first] = (await once(child.stdout, 'data')) as [Buffer];
        let lost = 0;
        for (let i = 0; i < requests; i++) lost = Number(await get(Number(first.toString())));
        assert.equal(child.exitCode, null);
        // A closed descriptor is opened as /dev/null by the runtime.
        if (redirection !== '2>&-') assert.ok(lost > 0);
      } finally {
        child.kill();
      }
      // Pending lines do not hold up the end either.
      await once(child, 'exit');
    });
});

function get(port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    http
      .get({ port, host: '127.0.0.1', agent: false }, (response) => {
        let text = '';
        response.setEncoding('utf8').on('data', (piece: string) => {
          text += piece;
        });
        response.on('end', () => resolve(text));
      })
      .on('error', reject);
  });
}
