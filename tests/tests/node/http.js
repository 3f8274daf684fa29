// A server and a hundred concurrent clients, with keep-alive and without, and a child process.
'use strict';
const assert = require('assert');
const http = require('http');
const net = require('net');
const { execFileSync } = require('child_process');

function get(agent, host, port, path) {
  return new Promise((resolve, reject) => {
    http.get({ agent, host, port, path }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (part) => { text += part; });
      response.on('end', () => resolve(text));
    }).on('error', reject);
  });
}

async function main() {
  const large = 'x'.repeat(1 << 20);
  const server = http.createServer((request, response) => {
    if (request.url === '/large') return response.end(large);
    response.end(`${request.url} for ${request.socket.remoteAddress}`);
  });
  for (const host of ['127.0.0.1', '::1']) {
    await new Promise((resolve) => server.listen(0, host, resolve));
    const { port } = server.address();
    for (const keepAlive of [false, true]) {
      const agent = new http.Agent({ keepAlive, maxSockets: 20 });
      const paths = Array.from({ length: 100 }, (_, n) => `/${n}`);
      const pages = await Promise.all(paths.map((path) => get(agent, host, port, path)));
      assert.deepStrictEqual(pages, paths.map((path) => `${path} for ${host}`));
      assert.strictEqual((await get(agent, host, port, '/large')).length, large.length);
      agent.destroy();
    }
    await new Promise((resolve) => { server.close(resolve); server.closeAllConnections(); });
    const error = await new Promise((resolve) => net.connect(port, host).on('error', resolve));
    assert.strictEqual(error.code, 'ECONNREFUSED');
  }
  assert.strictEqual(execFileSync('echo', ['child']).toString(), 'child\n');
  console.log('good');
}

main();
