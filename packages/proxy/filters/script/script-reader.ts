import { Socket } from 'node:net';
import { parentPort } from 'node:worker_threads';
import { LineSplitter } from './line-splitter.ts';

/** Reads the calls of the proxy for the process of a filter (./script-process.ts), and ends that process when the proxy has gone. */
const callsDescriptor = 4;

const calls = new Socket({ fd: callsDescriptor, readable: true, writable: false });
const end = () => process.kill(process.pid, 'SIGKILL');
calls.on('close', end);
calls.on('error', end);
const lines = new LineSplitter();
calls.on('data', (piece: Buffer) => lines.read(piece, (line) => parentPort!.postMessage(JSON.parse(line))));
// A process that can no longer be called must not live on: the proxy starts another.
process.on('uncaughtException', end);
parentPort!.postMessage('ready');
