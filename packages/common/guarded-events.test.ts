import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import http from 'node:http';
import http2 from 'node:http2';
import net, { type AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { clearFaults, errorBoundary, injectFault, internalErrors, logErrorsTo } from './error-boundary.ts';
import { emitAgain } from './guarded-events.ts';
import { silentLogger } from './logger.ts';

describe('an owned event emitter', () => {
  const escaped: unknown[] = [];
  const notice = (error: unknown) => escaped.push(error);
  const servers: (net.Server | http2.Http2Server)[] = [];

  before(() => {
    logErrorsTo(silentLogger);
    process.on('uncaughtException', notice);
    process.on('unhandledRejection', notice);
  });
  after(() => {
    for (const server of servers) server.close();
    process.off('uncaughtException', notice);
    process.off('unhandledRejection', notice);
    assert.deepEqual(escaped, []);
  });

  async function listening(server: net.Server | http2.Http2Server): Promise<number> {
    servers.push(server);
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return (server.address() as AddressInfo).port;
  }

  const throwing = () => {
    throw new Error('broken');
  };

  it('has a listener for its errors and catches what its handlers throw', () => {
    const emitter = errorBoundary('test.emitter').own(new EventEmitter());
    emitter.emit('error', new Error('reset'));
    emitter.on('event', throwing);
    assert.equal(emitter.emit('event'), true);
    assert.equal(internalErrors().get('test.emitter'), 1);
  });

  it('calls the given end in the place of its own', () => {
    let ends = 0;
    const emitter = errorBoundary('test.end').own(new EventEmitter(), () => ends++);
    emitter.on('event', throwing).emit('event');
    assert.equal(ends, 1);
  });

  it('closes the connection whose handler throws, and its server takes the next', async () => {
    const boundary = errorBoundary('test.connection');
    let connections = 0;
    const port = await listening(
      boundary.own(
        net.createServer((socket) => {
          if (++connections === 1) throw new Error('broken');
          socket.on('data', connections === 2 ? throwing : () => socket.end('served'));
        }),
      ),
    );
    for (const expected of ['', '', 'served']) {
      const socket = net.connect(port, '127.0.0.1');
      socket.on('error', () => {});
      let received = '';
      socket.on('data', (data) => (received += String(data))).write('x');
      await once(socket, 'close');
      assert.equal(received, expected);
    }
    assert.equal(boundary.errors, 2);
  });

  it('handles an event that must not be lost once more, and no third time', () => {
    const boundary = errorBoundary('test.again');
    const emitter = boundary.own(new EventEmitter(), emitAgain);
    const received: unknown[] = [];
    emitter.on('event', (value) => {
      received.push(value);
      if (value === 'broken') throw new Error('broken');
    });
    injectFault('test.again', 1);
    emitter.emit('event', 'whole');
    clearFaults();
    emitter.emit('event', 'broken');
    assert.deepEqual(received, ['whole', 'broken', 'broken']);
    assert.equal(boundary.errors, 3);
  });

  it('lets the code that waits for a server to listen, or for a response, receive the error', async () => {
    const boundary = errorBoundary('test.waiting');
    injectFault('test.waiting', 1);
    await assert.rejects(listening(boundary.own(net.createServer())), /injected fault/);
    const port = await listening(boundary.own(http.createServer((_request, response) => response.end('ok'))));
    const request = errorBoundary('test.response').own(http.get({ port, host: '127.0.0.1', agent: false }));
    request.on('response', throwing);
    await assert.rejects(
      once(request, 'socket').then(() => once(request, 'never')),
      /broken/,
    );
    clearFaults();
  });

  it('answers an HTTP request whose handler throws with 500', async () => {
    const boundary = errorBoundary('test.http');
    const port = await listening(boundary.own(http.createServer(throwing)));
    const response = await fetch(`http://127.0.0.1:${port}/`, { headers: { connection: 'close' } });
    assert.equal(response.status, 500);
    assert.equal(boundary.errors, 1);
  });

  it('answers an HTTP/2 request whose handler throws with 500 and resets a stream whose handler throws later', async () => {
    const boundary = errorBoundary('test.http2');
    const port = await listening(
      boundary.own(
        http2.createServer((request) => {
          if (request.url === '/at-once') throw new Error('broken');
          request.on('data', throwing);
        }),
      ),
    );
    const session = boundary.own(http2.connect(`http://127.0.0.1:${port}`));
    const status = async (path: string) => {
      const stream = session.request({ ':path': path, ':method': 'POST' });
      let found: unknown = 'reset';
      stream.on('response', (headers) => (found = headers[':status']));
      stream.on('error', () => {});
      stream.resume().end('content');
      await new Promise((resolve) => stream.on('close', resolve));
      return found;
    };
    assert.equal(await status('/at-once'), 500);
    assert.equal(await status('/later'), 'reset');
    assert.equal(await status('/at-once'), 500);
    session.destroy();
  });

  it('survives a program that cannot be started and a pipe to one that does not read', async () => {
    const boundary = errorBoundary('test.process');
    const missing = boundary.own(spawn('/nonexistent-program', []));
    const gone = boundary.own(spawn('true', []));
    gone.stdin?.write(Buffer.alloc(1024 * 1024));
    await Promise.all([once(missing, 'close'), once(gone, 'close')].map((event) => event.catch(() => {})));
    gone.stdin?.write('x');
    await new Promise((resolve) => setImmediate(resolve));
  });

  it('counts the error of a server that nothing else listens for', () => {
    const boundary = errorBoundary('test.server');
    boundary.own(net.createServer()).emit('error', new Error('EMFILE'));
    assert.equal(boundary.errors, 1);
  });
});

describe('timers and promises of a boundary', () => {
  it('run the end of a timer chain when its work throws', async () => {
    const boundary = errorBoundary('test.timer');
    await new Promise<void>((resolve) => {
      boundary.after(
        0,
        () => {
          throw new Error('broken');
        },
        resolve,
      );
    });
    let turns = 0;
    await new Promise<void>((resolve) => {
      const timer = boundary.every(1, () => {
        if (++turns < 3) throw new Error('broken');
        clearInterval(timer);
        resolve();
      });
    });
    assert.equal(boundary.errors, 3);
  });

  it('count a rejection that no code waits for', async () => {
    const boundary = errorBoundary('test.promise');
    await new Promise<void>((resolve) => boundary.start(() => Promise.reject(new Error('broken')), resolve));
    assert.equal(boundary.errors, 1);
  });

  it('tell errors of ours from refusals of peers and of the system', () => {
    const boundary = errorBoundary('test.unexpected');
    boundary.unexpected(Object.assign(new Error('refused'), { code: 'ECONNREFUSED' }));
    boundary.unexpected(new TypeError('fetch failed', { cause: new Error('refused') }));
    assert.equal(boundary.errors, 0);
    boundary.unexpected(new TypeError('undefined is not a function'));
    boundary.unexpected(Object.assign(new RangeError('out of range'), { code: 'ERR_OUT_OF_RANGE' }));
    assert.equal(boundary.errors, 2);
  });
});
