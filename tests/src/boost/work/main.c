int part0(void), part1(void), part2(void), part3(void), part4(void), part5(void);
int part6(void), part7(void), part8(void), part9(void), part10(void), part11(void);
int table0(void), table1(void);

/* Succeeds if every object is linked. */
int main(void)
{
	int parts = part0() + part1() + part2() + part3() + part4() + part5() +
		    part6() + part7() + part8() + part9() + part10() + part11();

	return parts + table0() + table1() == 14 ? 0 : 1;
}
