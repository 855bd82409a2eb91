/** The unit: judged by systemd itself, and what must not slip out of it. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { SERVICE_NAME, serviceUnit, sysusersConf, unitSections } from '../../../agent/service/unit.ts'

/** The promise of the issue. */
const EXPOSURE_MAX = 2.0

const hasSystemd = spawnSync('systemd-analyze', ['--version']).status === 0
if (!hasSystemd) console.warn('skipped: there is no systemd-analyze, so nobody judges the unit')

describe('serviceUnit', () => {
  it('starts the words that it was given, whatever they have in them', () => {
    expect(serviceUnit({ program: ['/opt/node', '--flag=1', '/opt/main.js'], flags: ['--no-mdns'] })).toContain(
      '\nExecStart=/opt/node --flag=1 /opt/main.js start --no-mdns\n',
    )
    const odd = serviceUnit({ program: ['/a b/$HOME/100%/"x"\\y'] })
    expect(odd).toContain('\nExecStart="/a b/$$HOME/100%%/\\"x\\"\\\\y" start\n')
  })

  it('leaves settings that this systemd does not know out', () => {
    expect(serviceUnit({ program: ['/x'] })).not.toContain('RestartSteps')
    expect(serviceUnit({ program: ['/x'], systemdVersion: 254 })).toContain('RestartSteps')
  })

  it('has each setting once, but for lists', () => {
    const keys = unitSections({ program: ['/x'] }).flatMap(({ settings }) => settings.map(({ key }) => key))
    expect([...serviceUnit({ program: ['/x'] }).matchAll(/^(\w+)=/gm)].map(([, key]) => key)).toEqual(keys)
    const lists = ['LoadCredential', 'SystemCallFilter']
    expect(keys.filter((key, at) => keys.indexOf(key) !== at && !lists.includes(key))).toEqual([])
  })
})

describe.skipIf(!hasSystemd)('systemd', () => {
  let directory: string
  let file: string
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), 'undernet-unit-'))
    file = join(directory, `${SERVICE_NAME}.service`)
  })
  afterAll(() => rmSync(directory, { recursive: true, force: true }))

  it('finds nothing wrong with the unit', () => {
    writeFileSync(file, serviceUnit({ program: ['/bin/true'] }))
    const { status, stdout, stderr } = spawnSync('systemd-analyze', ['verify', '--man=no', file], { encoding: 'utf8' })
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: '', stderr: '' })
  })

  it('would find it, if there were something', () => {
    writeFileSync(file, serviceUnit({ program: ['/bin/true'] }).replace('WatchdogSec=', 'WatchDogSec='))
    const { stderr } = spawnSync('systemd-analyze', ['verify', '--man=no', file], { encoding: 'utf8' })
    expect(stderr).toContain("'WatchDogSec'")
  })

  it(`finds it exposed by ${EXPOSURE_MAX} at most`, () => {
    writeFileSync(file, serviceUnit({ program: ['/bin/true'] }))
    const threshold = `--threshold=${EXPOSURE_MAX * 10}`
    const words = ['security', '--offline=true', '--no-pager', threshold, file]
    const { status, stdout } = spawnSync('systemd-analyze', words, { encoding: 'utf8' })
    expect(status, stdout).toBe(0)
    const [, exposure] = /Overall exposure level for \S+: ([\d.]+)/.exec(stdout) ?? []
    expect(Number(exposure)).toBeLessThanOrEqual(EXPOSURE_MAX)
  })

  it('takes the user from what sysusers.d is given', () => {
    const root = join(directory, 'root')
    const { status, stderr } = spawnSync('systemd-sysusers', ['--root', root, '--dry-run', '-'], {
      input: sysusersConf(),
      encoding: 'utf8',
    })
    expect(status, stderr).toBe(0)
  })
})
