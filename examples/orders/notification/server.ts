// Tells customers of payments; /sent shows what it has told them. Two versions of it run: v2 is a canary, and writes nicer letters.
import { createServer } from 'node:http';

const { PORT, VERSION = 'v1' } = process.env;
const sent: object[] = [];

createServer((request, response) => {
  const answer = (value: unknown) => void response.writeHead(200, { 'content-type': 'application/json' }).end(`${JSON.stringify(value)}\n`);
  if (request.url === '/health') return void response.end('ok');
  if (request.url === '/sent') return answer(sent.slice(-20));
  if (request.url === '/dapr/subscribe') return answer([{ pubsubname: 'orders-broker', topic: 'payments', route: '/payments' }]);
  if (request.url !== '/payments') return void response.writeHead(404).end();
  let text = '';
  request.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  request.on('end', () => {
    const { data } = JSON.parse(text) as { data: { order: number; customer: string; amount: number; state: string } };
    const greeting = VERSION === 'v2' ? `Dear ${data.customer}, good news:` : `${data.customer}:`;
    const letter = {
      by: VERSION,
      order: data.order,
      text: `${greeting} order ${data.order} (${data.amount}) ${data.state}`,
      publisher: request.headers['x-mizzen-publisher'],
    };
    sent.push(letter);
    console.log(letter.text);
    answer({ status: 'SUCCESS' });
  });
}).listen(Number(PORT), '127.0.0.1');
