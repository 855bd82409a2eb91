/**
 * `npm run soak -- versions [COMMIT]`: the agent of another commit and that of this tree in one closed network. Each makes a network that the other
 * joins, finds and fetches what the other published, and reaches a service of the other; then a node of the older is upgraded where it stands, and goes
 * on as the same member. The older one is bundled from its own sources, with the packages that are installed here.
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { SearchResult } from '../agent/api/contract.ts'
import type { ForwardEvent } from '../agent/api/service-contract.ts'
import { freePort, RealAgent, SOURCES, until } from '../test/agents.ts'

/** The end of main before upgrades were thought of: what any later version has to live with. */
const OLDER = '8828191'
const SOON_MS_MAX = 60_000
const POLICY = `
[[grants]]
from = "*"
to = "*"
allow = ["content:fetch", "content:publish", "service:offer *", "service:connect *"]
`

const root = fileURLToPath(new URL('..', import.meta.url))
const commit = process.argv[2] ?? OLDER
await using stack = new AsyncDisposableStack()
const directory = mkdtempSync(join(tmpdir(), 'undernet-versions-'))
stack.defer(() => rmSync(directory, { recursive: true, force: true }))

const older = bundleOf(commit)
for (const [first, second] of [
  ['older', 'newer'],
  ['newer', 'older'],
] as const)
  await meet(first, second)
say('both versions live in one network')
await stack.disposeAsync()
process.exit()

type Age = 'older' | 'newer'

/** `first` makes the network, `second` joins it. */
async function meet(first: Age, second: Age): Promise<void> {
  await using agents = new AsyncDisposableStack()
  const start = async (age: Age, name: string, state: string) =>
    agents.use(
      await RealAgent.start({
        name,
        state,
        entry: age === 'older' ? older : SOURCES,
        listen: `/ip4/127.0.0.1/tcp/${await freePort()}`,
        flags: ['--no-open'],
      }),
    )
  const stateOf = (name: string) => mkdtempSync(join(directory, `${name}-`))
  const maker = await start(first, `maker-${first}`, stateOf('maker'))
  let joiner = await start(second, `joiner-${second}`, stateOf('joiner'))
  const { version } = await maker.status()
  say(`${first} (${version}) makes a network, ${second} joins it`)
  await done(maker, 'network', 'create', 'kin')
  await done(maker, 'policy', 'set', file('policy.toml', POLICY), '--yes')
  await done(joiner, 'join', '--file', file('token', await done(maker, 'invite')))
  await exchange(maker, joiner)
  await exchange(joiner, maker)
  if (second === 'newer') return
  say('the older one is upgraded where it stands')
  const { peerId } = await joiner.status()
  const { state } = joiner
  await joiner.end()
  joiner = await start('newer', joiner.name, state)
  const upgraded = await joiner.status()
  if (upgraded.peerId !== peerId || upgraded.networks[0]?.member?.state !== 'member')
    throw new Error(`it is not who it was: ${JSON.stringify(upgraded.networks)}`)
  await exchange(maker, joiner)
  await exchange(joiner, maker)
}

/** What one publishes and offers the other finds, fetches and reaches. */
async function exchange(giver: RealAgent, taker: RealAgent): Promise<void> {
  const name = `from-${giver.name}-${String(performance.now()).replace('.', '-')}`
  // More than one piece, and than what goes without a lane.
  const content = name.repeat(200_000)
  await done(giver, 'publish', file(name, content), '--network', 'kin')
  await until(async () => (await taker.json<SearchResult>('search', name)).artifacts.length > 0, {
    what: () => `${taker.name} finds ${name}\n${taker.log.slice(-20).join('\n')}`,
    ms: SOON_MS_MAX,
  })
  const into = join(directory, `got-${name}`)
  await done(taker, 'get', name, '--to', into)
  if (readFileSync(join(into, name), 'utf8') !== content)
    throw new Error(`${taker.name} got something else than ${name}`)

  await using services = new AsyncDisposableStack()
  const server = services.adopt(
    createServer((socket) => {
      // Health checks hang up.
      socket.on('error', () => undefined)
      socket.end(name)
    }),
    (one) => void one.close(),
  )
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await done(giver, 'service', 'add', 'echo', String(port))
  const said = await until(async () => await reach(taker, 'echo').catch(() => undefined), {
    what: () => `${taker.name} reaches echo of ${giver.name}\n${taker.log.slice(-20).join('\n')}`,
    ms: SOON_MS_MAX,
  })
  if (said !== name) throw new Error(`echo of ${giver.name} said ${JSON.stringify(said)} to ${taker.name}`)
  await done(giver, 'service', 'remove', 'echo')
  say(`  ${taker.name} found, fetched and reached what is of ${giver.name}`)
}

/** What a service says to who connects; undefined when it is not there yet. */
async function reach(agent: RealAgent, name: string): Promise<string | undefined> {
  const { connect } = process.getBuiltinModule('node:net')
  const over = new AbortController()
  try {
    for await (const event of agent.client.events<ForwardEvent>('forward', { name, port: 0 }, over.signal)) {
      if (event.type !== 'listening') continue
      const socket = connect(event.port, '127.0.0.1')
      let said = ''
      for await (const chunk of socket) said += String(chunk)
      return said === '' ? undefined : said
    }
    return undefined
  } finally {
    over.abort()
  }
}

function bundleOf(wanted: string): string {
  say(`bundles ${wanted}`)
  const tree = join(directory, 'tree')
  mkdirSync(tree)
  const archive = join(directory, 'tree.tar')
  execFileSync('git', ['archive', '--output', archive, wanted], { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] })
  execFileSync('tar', ['--extract', '--file', archive, '--directory', tree])
  symlinkSync(join(root, 'node_modules'), join(tree, 'node_modules'))
  const out = join(directory, 'older')
  mkdirSync(out)
  symlinkSync(join(root, 'node_modules'), join(out, 'node_modules'))
  execFileSync(process.execPath, [join(tree, 'nix', 'build.ts'), join(out, 'dist')], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  return join(out, 'dist', 'main.js')
}

async function done(agent: RealAgent, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await agent.run(...args)
  if (code !== 0) throw new Error(`agent ${args.join(' ')} on ${agent.name} ended with ${code}: ${stderr}${stdout}`)
  return stdout
}

function file(name: string, content: string): string {
  const path = join(directory, name)
  writeFileSync(path, content, { mode: 0o600 })
  return path
}

function say(text: string): void {
  process.stdout.write(`${text}\n`)
}
