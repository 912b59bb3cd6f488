// `npm start`: the bookinfo example as a whole mesh on this machine. Set-up has run before (see "prestart" in package.json).
import { spawn } from 'node:child_process';
import { join } from 'node:path';

const root = join(import.meta.dirname, '..');
const node = join(root, 'node_modules/.bin/node');
const child = spawn(node, [join(root, 'packages/cli/bin/mizzen'), 'up', join(root, 'examples/bookinfo'), ...process.argv.slice(2)], { stdio: 'inherit' });
// The terminal sends Ctrl-C to both; the mesh ends in order, and this waits for it.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => (signal === 'SIGINT' && process.stdin.isTTY ? undefined : child.kill(signal)));
child.on('exit', (code) => process.exit(code ?? 1));
