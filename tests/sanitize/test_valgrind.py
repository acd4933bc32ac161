"""Which findings of valgrind count."""

from sanitize.valgrind import findings

REPORT = """<valgrindoutput>
<error><kind>UninitCondition</kind><stack>
<frame><obj>/usr/bin/python3</obj><fn>PyObject_Call</fn></frame></stack>
</error>
<error><kind>Leak_DefinitelyLost</kind><stack>
<frame><obj>/lib/vgpreload_memcheck.so</obj><fn>malloc</fn></frame>
<frame><obj>/here/compiled/tmp1/m1.so</obj><fn>run</fn><line>7</line></frame>
<frame><fn>main</fn></frame></stack>
</error>
</valgrindoutput>"""


def test_findings_in_compiled_modules_count(tmp_path):
    report = tmp_path / "valgrind.xml"
    report.write_text(REPORT)
    assert list(findings(report, "/here/compiled")) == [
        ("Leak_DefinitelyLost", [("run", "7")])]
    assert list(findings(report, "/elsewhere")) == []
