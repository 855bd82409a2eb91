/** sd_notify against a real receiver: Python's datagram sockets, as Node has none. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { Notifier } from '../../../agent/service/notify.ts'

const hasPython = spawnSync('python3', ['-c', 'import socket']).status === 0
if (!hasPython) console.warn('skipped: python3 is not installed, so nothing receives notifications')

let directory: string
let receiver: ChildProcess | undefined
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'undernet-notify-'))
})
afterEach(() => {
  receiver?.kill()
  receiver = undefined
  rmSync(directory, { recursive: true, force: true })
})

/** Receives on `address` (`@` for the abstract namespace) until the test ends. */
async function receive(address: string): Promise<string[]> {
  const program = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1].replace('@', '\\0', 1))
print('bound', flush=True)
while True: print(repr(s.recv(4096).decode()), flush=True)
`
  const child = spawn('python3', ['-c', program, address], { stdio: ['ignore', 'pipe', 'inherit'] })
  receiver = child
  const messages: string[] = []
  let text = ''
  child.stdout.on('data', (chunk) => {
    text += chunk
    messages.splice(0, messages.length, ...text.split('\n').slice(0, -1))
  })
  await vi.waitUntil(() => messages[0] === 'bound', { timeout: 10_000 })
  return messages
}

describe('Notifier', () => {
  it('is not there when no service manager asked', async () => {
    expect(await Notifier.fromEnvironment({})).toBeUndefined()
    expect(await Notifier.fromEnvironment({ NOTIFY_SOCKET: '' })).toBeUndefined()
  })

  it('refuses an address that is no unix socket', async () => {
    await expect(Notifier.fromEnvironment({ NOTIFY_SOCKET: 'vsock:2:1234' })).rejects.toMatchObject({ code: 'usage' })
    await expect(Notifier.fromEnvironment({ NOTIFY_SOCKET: `/${'x'.repeat(200)}` })).rejects.toMatchObject({
      code: 'usage',
    })
  })

  it('does not fail when nobody listens', async () => {
    using notifier = await Notifier.fromEnvironment({ NOTIFY_SOCKET: join(directory, 'gone') })
    notifier?.ready('up')
  })
})

describe.skipIf(!hasPython)('messages', () => {
  it.each(['path', 'abstract'])('arrive on a socket with a name in the %s namespace', async (kind) => {
    const address = kind === 'path' ? join(directory, 's') : `@undernet-test-${process.pid}`
    const messages = await receive(address)
    using notifier = await Notifier.fromEnvironment({ NOTIFY_SOCKET: address })
    notifier?.ready('2 peers\nREADY=0')
    notifier?.status('3 peers')
    notifier?.reloading()
    notifier?.stopping('bye')
    await vi.waitUntil(() => messages.length >= 5)
    expect(messages.slice(1, 3)).toEqual(["'READY=1\\nSTATUS=2 peers READY=0\\n'", "'STATUS=3 peers\\n'"])
    expect(messages[3]).toMatch(/^'RELOADING=1\\nMONOTONIC_USEC=\d+\\n'$/)
    expect(messages[4]).toBe("'STOPPING=1\\nSTATUS=bye\\n'")
  })

  it('of the watchdog come twice a period while the agent is alive, and end when it is not', async () => {
    const address = join(directory, 's')
    const messages = await receive(address)
    using notifier = await Notifier.fromEnvironment({
      NOTIFY_SOCKET: address,
      WATCHDOG_USEC: '40000',
      WATCHDOG_PID: String(process.pid),
    })
    let isAlive = true
    const asked = vi.fn(() => isAlive)
    notifier?.watch(asked)
    await vi.waitUntil(() => messages.filter((one) => one === "'WATCHDOG=1\\n'").length >= 3)
    isAlive = false
    const calls = asked.mock.calls.length
    await vi.waitUntil(() => asked.mock.calls.length >= calls + 3)
    const count = messages.length
    await vi.waitUntil(() => asked.mock.calls.length >= calls + 6)
    expect(messages.length).toBe(count)
  })

  it('of the watchdog are left to the process that was asked', async () => {
    const address = join(directory, 's')
    const messages = await receive(address)
    using notifier = await Notifier.fromEnvironment({
      NOTIFY_SOCKET: address,
      WATCHDOG_USEC: '2000',
      WATCHDOG_PID: '1',
    })
    const asked = vi.fn(() => true)
    notifier?.watch(asked)
    notifier?.ready('up')
    await vi.waitUntil(() => messages.length === 2)
    expect(asked).not.toHaveBeenCalled()
  })
})
