"""Text of others is printed in the lines that the program writes."""

from sdft.runs.terminal import describe_error, print_text


def test_a_line_break_of_others_makes_no_line(capsys):
    print_text("images     a\nb\r.png", "next")
    assert capsys.readouterr().out == "images     a\\nb\\r.png\nnext\n"


def test_an_error_without_a_message_is_described_by_its_class():
    assert describe_error(ValueError()) == describe_error(ValueError(" \n"), last=True) == "ValueError"
    error = ValueError("\nfirst\nlast\n")
    assert [describe_error(error), describe_error(error, last=True)] == ["first", "last"]
