import { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { parentPort } from 'node:worker_threads';

/** Reads the calls of the proxy for the process of a filter (./script-process.ts), and ends that process when the proxy has gone. */
const callsDescriptor = 4;

const calls = new Socket({ fd: callsDescriptor, readable: true, writable: false });
const end = () => process.kill(process.pid, 'SIGKILL');
calls.on('close', end);
calls.on('error', end);
createInterface({ input: calls, crlfDelay: Number.POSITIVE_INFINITY }).on('line', (line) => parentPort!.postMessage(JSON.parse(line)));
parentPort!.postMessage('ready');
